"""`edgekit plan`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.drawing import check_path, draw
from edgekit.cli.options import Decorator, FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.quantities import Milliseconds, Size, read_link
from edgekit.cli.wording import ms_text, number_text, percent_text, plain, size_text

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest, Tier
    from edgekit.planning.link import Link
    from edgekit.planning.outlook import Outlook, Reason, Stretch
    from edgekit.planning.plan import Hop, Plan

OBJECTIVES = ("latency", "energy", "bytes")
ROWS_SHOWN = 16
LIMITS, WHERE = "Limits", "Where it runs"
FIGURES = (
    Column("latency ms", number=True),
    Column("bound ms", number=True),
    Column("mJ above idle", number=True),
    Column("sends", number=True),
    Column("drop", number=True),
)


def _limit(name: str, kind: click.ParamType, metavar: str, help: str) -> Decorator:
    return option(f"--max-{name}", type=kind, metavar=metavar, heading=LIMITS, help=help)


def _where(name: str, help: str) -> Decorator:
    return option(f"--{name}", metavar="PROFILE", heading=WHERE, help=help)


@make_command(
    """
    edgekit plan cats.edgekit --link 10mbps,20ms
    edgekit plan cats.edgekit --link 2mbps,60ms,1% --max-drop 0.6 --max-latency 80ms --plot front.png
    edgekit plan cats.edgekit --link 10mbps,20ms --objective energy --sweep
    edgekit plan cats.edgekit --link 10mbps,20ms --edge jetson --cloud x86-server --json
    """,
    name="plan",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--link", "link", required=True, metavar="LINK", help="Device to edge: bandwidth, round trip, loss.")
@click.option("--cloud-link", default="1gbps,10ms", show_default=True, metavar="LINK", help="Edge to cloud.")
@click.option("--objective", type=click.Choice(OBJECTIVES), default="latency", show_default=True, help="To minimise.")
@_limit("latency", Milliseconds(), "TIME", "Such as 50ms.")
@_limit("energy", FiniteRange(0), "MJ", "Millijoules of the device above idle, for each answer.")
@_limit("bytes", Size(), "SIZE", "Sent by the device for each answer, such as 2kB.")
@_limit("drop", FiniteRange(0), "POINTS", "What a plan may lose; as the export allowed without it.")
@_limit("memory", Size(), "SIZE", "Of the parts on the device, such as 20MB.")
@_where("device", "The bundle's own without it.")
@_where("edge", "The bundle's own without it.")
@_where("cloud", "The bundle's own without it.")
@click.option("--sweep", is_flag=True, help="Which plan from which bandwidth on, at this round trip.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the front: .svg, .html or .png.")
@click.option("--force", is_flag=True, help="Replace an existing plot.")
def command(
    out: Output,
    bundle: Path,
    link: str,
    cloud_link: str,
    objective: str,
    max_latency: float | None,
    max_energy: float | None,
    max_bytes: float | None,
    max_drop: float | None,
    max_memory: float | None,
    device: str | None,
    edge: str | None,
    cloud: str | None,
    sweep: bool,
    plot: Path | None,
    force: bool,
) -> None:
    """Choose how to run BUNDLE under a link: the Pareto front, the chosen plan, and why others lost.

    Latencies are predicted from the profiles of the devices; energy is the device's own, above idle, estimated. The
    bound is what no implementation beats: rooflines, bytes at full rate, half a round trip each way.
    """
    from edgekit.bundle import Bundle
    from edgekit.planning.outlook import Outlook
    from edgekit.planning.plan import Objective, PlanLimits

    check_path(plot, force)
    links: dict[Hop, Link] = {
        ("device", "edge"): read_link(out, link, "--link"),
        ("edge", "cloud"): read_link(out, cloud_link, "--cloud-link"),
    }
    servers: dict[Tier, str | None] = {"edge": edge, "cloud": cloud}
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    outlook = Outlook.of(
        manifest,
        links=links,
        device=device,
        servers={tier: name for tier, name in servers.items() if name is not None},
        objective=Objective(**{name: float(name == objective) for name in OBJECTIVES}),
        limits=PlanLimits(
            latency_ms=max_latency,
            energy_mj=max_energy,
            bytes_sent=max_bytes,
            drop=_max_drop(manifest) if max_drop is None else max_drop,
            memory_bytes=None if max_memory is None else int(max_memory),
        ),
    )
    chosen = outlook.chosen()
    stretches = outlook.sweep() if sweep else []
    if plot is not None:
        _draw(plot, outlook, chosen, f"{manifest.name} over {link}: plans that nothing beats")
    out.emit(_payload(bundle, outlook, chosen, objective, stretches if sweep else None))
    if not out.json:
        _show(out, outlook, chosen)
        if sweep:
            out.line()
            out.table(_sweep_table(stretches))
    if plot is not None:
        out.remark(f"drawn: {plot}")


def _max_drop(manifest: Manifest) -> float:
    exported = manifest.provenance.recipe.get("max_drop")
    return float(exported) if isinstance(exported, int | float) else 1.0


def _draw(path: Path, outlook: Outlook, chosen: Plan, title: str) -> None:
    from edgekit.cli.front_plot import front_shapes

    draw(path, front_shapes(outlook.shown(chosen), chosen, outlook.limits, title), title)


def _payload(
    bundle: Path, outlook: Outlook, chosen: Plan, objective: str, stretches: Sequence[Stretch] | None
) -> dict[str, Any]:
    def row(plan: Plan) -> dict[str, Any]:
        return {**plain(plan), "bound_ms": outlook.bound_ms(plan), "is_chosen": plan == chosen}

    return {
        "bundle": str(bundle),
        "device": outlook.device,
        "links": {f"{low}-{high}": plain(link) for (low, high), link in outlook.links.items()},
        "objective": objective,
        "limits": plain(outlook.limits),
        "chosen": row(chosen),
        "front": [row(plan) for plan in outlook.shown(chosen)],
        "ways": [{"variant": r.variant, "why": r.why, "best": row(r.best)} for r in outlook.reasons(chosen)],
        **({} if stretches is None else {"sweep": [plain(stretch) for stretch in stretches]}),
    }


def _show(out: Output, outlook: Outlook, chosen: Plan) -> None:
    bound = outlook.bound_ms(chosen)
    rows: list[tuple[str, str | Cell]] = [
        ("chosen", Cell(_name(outlook, chosen), "bold green")),
        ("runs on", " > ".join(chosen.tiers)),
        (
            "latency",
            f"{ms_text(chosen.latency_ms)} ms: computing {ms_text(chosen.compute_ms)}, network "
            f"{ms_text(chosen.network_ms)}; bound {ms_text(bound)}"
            + (f", {chosen.latency_ms / bound:.2f} x" if bound else ""),
        ),
        ("energy", f"{number_text(chosen.energy_mj)} mJ of {outlook.device} above idle, estimated"),
        ("sends", size_text(chosen.bytes_sent)),
        ("loses", f"{chosen.drop:.2f} points{_agreement(chosen)}"),
    ]
    out.table(facts(rows))
    out.line()
    out.table(_front_table(outlook, chosen))
    hidden = len(outlook.shown(chosen)) - ROWS_SHOWN
    if hidden > 0:
        out.remark(f"{hidden} more on the front: --json lists them all")
    out.line()
    out.table(_reasons_table(outlook, outlook.reasons(chosen)))


def _agreement(plan: Plan) -> str:
    return "" if plan.agreement is None else f", {percent_text(plan.agreement)} of answers agree with the float model"


def _name(outlook: Outlook, plan: Plan) -> str:
    rates = [
        f"rate {index} of 0-{len(crossing.rates) - 1}"
        for index, crossing in zip(plan.rates, outlook.way(plan).crossings, strict=True)
    ]
    return f"{plan.variant} at {', '.join(rates)}" if rates else plan.variant


def _figures(outlook: Outlook, plan: Plan, style: str = "") -> tuple[Cell, ...]:
    texts = (
        ms_text(plan.latency_ms),
        ms_text(outlook.bound_ms(plan)),
        number_text(plan.energy_mj),
        size_text(plan.bytes_sent) if plan.bytes_sent else "nothing",
        f"{plan.drop:.2f}",
    )
    return tuple(Cell(text, style) for text in texts)


def _front_table(outlook: Outlook, chosen: Plan) -> Table:
    """Thinned evenly where it is long; the chosen plan always stays."""
    front = outlook.shown(chosen)
    step = max(1.0, (len(front) - 1) / (ROWS_SHOWN - 1))
    kept = {round(index * step) for index in range(min(ROWS_SHOWN, len(front)))}
    rows: list[tuple[Cell, ...]] = []
    for index, plan in enumerate(front):
        if index in kept or plan == chosen:
            style = "bold green" if plan == chosen else ""
            mark = "chosen" if plan == chosen else ", ".join(outlook.broken(plan))
            rows.append((Cell(_name(outlook, plan), style), *_figures(outlook, plan, style), Cell(mark, style)))
    return Table((Column("plan", style="cyan"), *FIGURES, Column("")), rows, "Pareto front")


def _reasons_table(outlook: Outlook, reasons: Sequence[Reason]) -> Table:
    rows: list[tuple[str | Cell, ...]] = [
        (_name(outlook, reason.best), *_figures(outlook, reason.best), Cell(reason.why, "" if reason.lost else "green"))
        for reason in reasons
    ]
    return Table((Column("way, at its best", style="cyan"), *FIGURES, Column("why not")), rows, "Every way")


def _sweep_table(stretches: Sequence[Stretch]) -> Table:
    columns = (
        Column("bandwidth Mbit/s"),
        Column("plan", style="cyan"),
        Column("rates"),
        Column("latency ms", number=True),
        Column("drop", number=True),
    )
    rows = []
    for stretch in stretches:
        span = f"{stretch.low_mbps:.3g} to {stretch.high_mbps:.3g}"
        if stretch.variant is None:
            rows.append((span, "none", stretch.binding, "-", "-"))
            continue
        latency = f"{ms_text(stretch.slowest_ms)} to {ms_text(stretch.fastest_ms)}"
        drop = f"{stretch.least_drop:.2f}"
        if stretch.most_drop - stretch.least_drop >= 0.005:
            drop += f" to {stretch.most_drop:.2f}"
        rows.append((span, stretch.variant, stretch.rates_text, latency, drop))
    return Table(columns, rows, "Which plan from which bandwidth on")
