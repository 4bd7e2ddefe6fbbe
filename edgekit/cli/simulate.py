"""`edgekit simulate`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import NameType
from edgekit.cli.command import command as make_command
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.quantities import read_link
from edgekit.cli.wording import ms_text, number_text, percent_text, plain, size_text
from edgekit.errors import OutputError, PlanError, UnknownNameError, UsageError
from edgekit.planning.comparison import POLICIES

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest, Tier
    from edgekit.planning.comparison import Comparison, Row, Setting
    from edgekit.planning.link import Link
    from edgekit.planning.traces import Trace

PLAN, LOAD = "What is planned with", "The requests"


@make_command(
    """
    edgekit simulate cats.edgekit --trace lte
    edgekit simulate cats.edgekit --trace all --policy edgekit --policy oracle --plot policies.svg
    edgekit simulate cats.edgekit --trace walk.csv --rate 5 --deadline 300ms --device raspberry-pi-4 --json
    """,
    name="simulate",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--trace", "traces", multiple=True, required=True, metavar="NAME|FILE|all", help="A trace by name or as a CSV file."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=NameType("policy", lambda: (*POLICIES, "all")),
    default=("all",),
    show_default=True,
    metavar="NAME|all",
    help=f"One of {', '.join(POLICIES)}; may be given again.",
)
@option(
    "--rate",
    type=FiniteRange(0, min_open=True),
    metavar="HZ",
    heading=LOAD,
    help="Requests a second; 3 without it.",
)
@option(
    "--think", metavar="TIME", heading=LOAD, help="Instead of a rate: the next request so long after an answer, 100ms."
)
@option(
    "--requests",
    type=click.IntRange(1, 100_000),
    metavar="N",
    heading=LOAD,
    help="How many; without it as many as fill 120 s at the rate.",
)
@option(
    "--deadline",
    default="300ms",
    show_default=True,
    metavar="TIME",
    heading=LOAD,
    help="When the local answer stands in; ms without a unit.",
)
@option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    heading=LOAD,
    help="Of traces by name, and of chance.",
)
@option("--device", metavar="PROFILE", heading=PLAN, help="The bundle's own without it.")
@option("--edge", metavar="PROFILE", heading=PLAN, help="The bundle's own without it.")
@option("--cloud", metavar="PROFILE", heading=PLAN, help="The bundle's own without it.")
@option(
    "--edge-link", default="1gbps,10ms", show_default=True, metavar="LINK", heading=PLAN, help="Between edge and cloud."
)
@option("--max-drop", type=FiniteRange(0), metavar="POINTS", heading=PLAN, help="What a plan may lose; 1 without it.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the latencies.")
@click.option("--force", is_flag=True, help="Replace an existing plot.")
def command(
    out: Output,
    bundle: Path,
    traces: Sequence[str],
    policies: Sequence[str],
    rate: float | None,
    think: str | None,
    requests: int | None,
    deadline: str,
    seed: int,
    device: str | None,
    edge: str | None,
    cloud: str | None,
    edge_link: str,
    max_drop: float | None,
    plot: Path | None,
    force: bool,
) -> None:
    """Replay each policy over BUNDLE's plans on a trace, in virtual time, and compare it with an oracle."""
    from edgekit.bundle import Bundle
    from edgekit.planning.comparison import compare

    if plot is not None and plot.exists() and not force:
        raise OutputError(f"{plot} exists", hint="--force replaces it, --plot names another")
    workload = _workload(rate, think, requests, deadline, seed)
    links = _traces(traces, seed)
    above = read_link(out, edge_link, "--edge-link")
    with Bundle.open(bundle) as opened:
        setting = _setting(opened.manifest, workload, device, {"edge": edge, "cloud": cloud}, above, max_drop)
    names = list(POLICIES) if "all" in policies else list(dict.fromkeys(policies))
    comparison = compare(setting, links, names)
    _check_possible(setting, links, comparison)
    if plot is not None:
        _draw(plot, comparison)
    out.emit(_payload(bundle, comparison, setting))
    if not out.json:
        _show(out, comparison)
    if plot is not None:
        out.remark(f"drawn: {plot}")


def milliseconds(text: str, option: str) -> float:
    """`300ms`, `0.3s` or `300`. Raises UsageError."""
    factor = 1.0
    number = text.strip().lower()
    for unit, size in (("ms", 1.0), ("s", 1000.0)):
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
            break
    try:
        value = float(number) * factor
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UsageError(f"{option} {text!r} is no time", hint="like 300ms or 0.3s")
    return value


def _workload(rate: float | None, think: str | None, requests: int | None, deadline: str, seed: int) -> Any:
    from edgekit.planning.simulate import Workload

    if rate is not None and think is not None:
        raise UsageError("--rate and --think exclude each other", hint="a fixed rate, or a pause after each answer")
    hz = 3.0 if rate is None and think is None else rate
    count = requests if requests is not None else round(120 * (hz or 3.0)) or 1
    think_ms = 0.0 if think is None else milliseconds(think, "--think")
    return Workload(
        requests=count, rate_hz=hz, think_ms=think_ms, deadline_ms=milliseconds(deadline, "--deadline"), seed=seed
    )


def _traces(references: Sequence[str], seed: int) -> list[Trace]:
    from edgekit.planning.named_traces import TRACES
    from edgekit.runtimes.link.traces import open_trace

    wanted = [name for reference in references for name in (TRACES if reference == "all" else (reference,))]
    try:
        found = [open_trace(name, seed) for name in dict.fromkeys(wanted)]
    except UnknownNameError as error:
        raise UnknownNameError("trace", error.name, [*TRACES, "all"]) from None
    if len({trace.name for trace in found}) < len(found):
        raise UsageError("two traces have the same name", hint="rename one of the files")
    return found


def _setting(
    manifest: Manifest,
    workload: Any,
    device: str | None,
    servers: dict[Tier, str | None],
    above: Link,
    max_drop: float | None,
) -> Setting:
    from edgekit.devices.device import load_device
    from edgekit.planning.comparison import Setting
    from edgekit.planning.ways import power_of, ways

    profile = load_device(device or manifest.device)
    given = {tier: load_device(name) for tier, name in servers.items() if name is not None}
    return Setting(
        ways=ways(manifest, profile, given),
        workload=workload,
        max_drop=1.0 if max_drop is None else max_drop,
        above={("edge", "cloud"): above},
        power=power_of(profile),
        image_codecs=frozenset(codec.name for codec in manifest.codecs if codec.kind == "image"),
        raw_bytes=_raw_bytes(manifest),
    )


def _check_possible(setting: Setting, links: Sequence[Trace], comparison: Comparison) -> None:
    """Raises PlanError where the bundle has no way for any policy that was asked for."""
    from edgekit.planning.comparison import compare

    if any(comparison.rows.values()):
        return
    asked = ", ".join(comparison.missing)
    possible = next(iter(compare(setting, links[:1]).rows.values()))
    why = next(iter(comparison.missing.values()))
    raise PlanError(f"no {asked}: {why}", hint=f"possible here: {', '.join(possible)}")


def _raw_bytes(manifest: Manifest) -> dict[str, float]:
    """A sample's features as they are, by codec; of a picture its 8-bit pixels."""
    sizes: dict[str, float] = {}
    for codec in manifest.codecs:
        specs = [entry.spec() for entry in codec.features]
        sizes[codec.name] = float(sum(spec.size_bytes for spec in specs)) / (4 if codec.kind == "image" else 1)
    return sizes


def _payload(bundle: Path, comparison: Comparison, setting: Setting) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "workload": plain(setting.workload),
        "max_drop": setting.max_drop,
        "traces": {
            trace: {
                "best_single": comparison.best_single(trace),
                "behind_best_single": comparison.behind_best_single(trace),
                "policies": {name: _figures(row) for name, row in rows.items()},
            }
            for trace, rows in comparison.rows.items()
        },
        "overall_ms": {name: comparison.overall_ms(name) for name in POLICIES if name not in comparison.missing},
        "missing": comparison.missing,
    }


def _figures(row: Row) -> dict[str, Any]:
    run = row.run
    return {
        "mean_ms": run.mean_ms,
        "p50_ms": run.percentile_ms(0.5),
        "p95_ms": run.percentile_ms(0.95),
        "regret": row.regret,
        "bytes": run.bytes_mean,
        "energy_mj": run.energy_mj_mean,
        "drop": run.drop_mean,
        "agreement": run.agreement_mean,
        "degraded": run.degraded,
        "lost": run.lost,
        "within_max_drop": row.admissible,
        "plan": row.detail or None,
        "used": run.used,
    }


def _show(out: Output, comparison: Comparison) -> None:
    for trace, rows in comparison.rows.items():
        allowed = [name for name, row in rows.items() if row.admissible and name != "oracle"]
        best = min(allowed, key=lambda name: rows[name].planned_ms, default=None)
        out.table(_table(trace, rows, best))
        out.line()
    for name, why in comparison.missing.items():
        out.remark(f"no {name}: {why}")
    if any(not row.admissible for rows in comparison.rows.values() for row in rows.values()):
        out.remark("* loses more than --max-drop allows, and counts for no comparison")


def _table(trace: str, rows: dict[str, Row], best: str | None) -> Table:
    columns = (
        Column(trace),
        Column("mean ms", number=True),
        Column("p50", number=True),
        Column("p95", number=True),
        Column("regret", number=True),
        Column("sent", number=True),
        Column("mJ above idle", number=True),
        Column("drop", number=True),
        Column("agreement", number=True),
        Column("degraded", number=True),
        Column("lost", number=True),
        Column("plan"),
    )
    lines = []
    for name, row in rows.items():
        run = row.run
        style = "bold" if name == best else ""
        cells = (
            name + ("" if row.admissible else " *"),
            ms_text(run.mean_ms),
            ms_text(run.percentile_ms(0.5)),
            ms_text(run.percentile_ms(0.95)),
            percent_text(row.regret),
            size_text(run.bytes_mean),
            number_text(run.energy_mj_mean, 0),
            number_text(run.drop_mean, 2),
            percent_text(run.agreement_mean),
            str(run.degraded),
            str(run.lost),
            row.detail or next(iter(run.used)),
        )
        lines.append([Cell(cell, style) for cell in cells])
    return Table(columns, lines)


def _draw(path: Path, comparison: Comparison) -> None:
    from edgekit.cli.policy_plot import policy_plot

    try:
        path.write_text(policy_plot(comparison), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose a writable path") from error
