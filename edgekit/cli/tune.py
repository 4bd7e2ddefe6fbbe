"""`edgekit tune`"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.bundle.manifest import TIERS, Manifest, Tier
from edgekit.bundle.write import check_folder
from edgekit.cli.command import command as make_command
from edgekit.cli.drawing import check_path, draw
from edgekit.cli.options import FiniteRange, file_option, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.wording import number_text
from edgekit.errors import MissingExtraError, OutputError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgekit.capacity.demand import Objective
    from edgekit.capacity.probe import Cores
    from edgekit.search.state import State
    from edgekit.tuning.search import Tuned
    from edgekit.tuning.settings import Settings
    from edgekit.tuning.trial import Trial

WHAT, HOW, OUTPUT = "What is tuned", "How long", "Output"
SHOWN, MAX_CORES = 12, 256
UNSTEADY = 0.2  # of what settings carry from round to round


@make_command(
    """
    edgekit tune cats.edgekit --slo p95=50ms
    edgekit tune cats.edgekit --slo p99=20ms --out tuned.toml --plot landscape.png
    edgekit serve cats.edgekit --settings tuned.toml
    """,
    name="tune",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@option(
    "--slo", heading=WHAT, required=True, metavar="pN=TIME", help="What the server must hold: p95=50ms, or p95=50; 1s."
)
@option(
    "--tier", heading=WHAT, type=click.Choice(TIERS), default="edge", show_default=True, help="Whose parts are served."
)
@option("--part", heading=WHAT, metavar="NAME", help="That one alone; without it all that can answer for each other.")
@option(
    "--cores",
    heading=WHAT,
    type=click.IntRange(1, MAX_CORES),
    metavar="N",
    help="For the node; all but one without, which is left to the caller.",
)
@option(
    "--seconds",
    heading=HOW,
    type=FiniteRange(0.3, 600),
    default=3.0,
    show_default=True,
    metavar="F",
    help="Of load for each setting at first; doubled for the better half, and so on.",
)
@option(
    "--most",
    heading=HOW,
    type=click.IntRange(2, 1000),
    default=48,
    show_default=True,
    metavar="N",
    help="Settings at most, drawn at random where there are more.",
)
@option(
    "--seed",
    heading=HOW,
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of arrivals and of what is drawn.",
)
@option(
    "--resume/--fresh",
    "resume",
    heading=HOW,
    default=True,
    help="Go on with what an earlier tuning of this bundle here measured, or begin anew.  [default: resume]",
)
@option(
    "--out",
    "written",
    heading=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the best settings: a TOML file for `edgekit serve --settings`.",
)
@file_option("--plot", heading=OUTPUT, help="Draw the landscape: .svg, .html or .png.")
@option("--force", heading=OUTPUT, is_flag=True, help="Replace what stands there.")
def command(out: Output, bundle: Path, **settings: Any) -> None:
    """Find the settings of a server that carry the most requests within a latency objective, on this machine.

    Each is tried on the real server: a node in a process of its own, pinned to cores that the caller does not use where
    there are two or more, under open-loop Poisson loads that rise until the objective breaks. Successive halving gives
    the better half twice the time. Where nothing holds the objective the nearest settings are named (exit code 14).
    What `edgekit serve` does without options is tried too and told beside the best. Each trial starts a node, which
    takes a few seconds: some ten minutes in all, one to two with --seconds 0.5 --most 8. What was measured is kept.
    """
    from edgekit.bundle import Bundle
    from edgekit.capacity.demand import Objective
    from edgekit.search.state import State
    from edgekit.tuning.search import state_path, tune
    from edgekit.tuning.settings import sample, space, usual, write_settings

    try:
        from edgekit.capacity.probe import Cores
        from edgekit.tuning.trial import Trial, run_trial
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "grpcio", "serve", "tuning a server") from error

    objective, tier = Objective.parse(settings["slo"]), settings["tier"]
    check_path(settings["plot"], settings["force"])
    _check_free(settings["written"], settings["force"])
    with Bundle.open(bundle) as opened:
        manifest, digest = opened.manifest, opened.digest
    cores = Cores.divide(settings["cores"] or MAX_CORES)
    _check_cores(settings["cores"], cores)
    whole = space(_parts(manifest, tier, settings["part"]), max(1, len(cores.node)), objective.limit_ms)
    tried = sample(whole, settings["most"], settings["seed"], usual(whole))
    if any(part.loop is not None for part in manifest.parts):
        out.remark("an iterated part: each request here is one step of it")
    out.remark(f"{len(tried)} settings; {cores}" + ("" if cores.apart else "; they share it, which costs both"))
    state = State(
        state_path(digest, objective, settings["seconds"], settings["seed"]),
        fresh=not settings["resume"],
        reads=Trial.of,
    )
    before, known = _last_measured(state), len(state)
    with out.working() as progress:
        found = tune(
            tried,
            objective,
            lambda one, seconds: run_trial(bundle, manifest, tier, one, objective, seconds, settings["seed"]),
            state,
            settings["seconds"],
            progress,
            usual(whole),
        )
    if before:
        which = "all of it" if len(state) == known else f"{known} of {len(state)} trials"
        out.remark(f"measured before, until {before}: {which}; --fresh measures anew")
    told = _told(bundle, objective, found, str(cores))
    if settings["written"] is not None:
        write_settings(settings["written"], found.best, told)
    if settings["plot"] is not None:
        from edgekit.cli.tune_plot import landscape

        draw(settings["plot"], landscape(found, objective), f"settings of {manifest.name}")
    out.emit(_payload(bundle, objective, found, str(cores), settings["written"]))
    if not out.json:
        _show(out, found, objective, settings["written"])
    if settings["plot"] is not None:
        out.remark(f"drawn: {settings['plot']}")
    if abs(found.drift() - 1) > UNSTEADY:
        out.remark(
            f"the machine was not steady: the last settings carried {found.drift():.2f}x of what they carried a round "
            "before; tune again on a quiet one, with --fresh"
        )


def _last_measured(state: State) -> str:
    """When the last of what is known already was measured; "" where nothing is."""
    if not len(state):
        return ""
    return datetime.fromtimestamp(state.path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _parts(manifest: Manifest, tier: Tier, wanted: str | None) -> list[tuple[str, bool]]:
    """(name, whether requests can be joined) of the parts on the tier that take and give the same tensors as the first
    one: other formats and precisions of one model. Raises NodeError, UnknownNameError."""
    from edgekit.capacity.calibration import is_batchable
    from edgekit.runtimes.server.catalog import parts_for

    parts = parts_for(manifest, tier)
    if wanted is not None:
        if wanted not in {part.name for part in parts}:
            raise UnknownNameError(f"part on the tier {tier}", wanted, [part.name for part in parts])
        parts = [part for part in parts if part.name == wanted]
    first = parts[0]
    alike = [part for part in parts if (part.inputs, part.outputs) == (first.inputs, first.outputs)]
    return [(part.name, is_batchable(part)) for part in alike]


def _check_free(path: Path | None, force: bool) -> None:
    if path is None:
        return
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"{path} exists", hint="--force replaces a file, --out names another")
    check_folder(path)


def _check_cores(wanted: int | None, given: Cores) -> None:
    """Raises UsageError where the node cannot have so many."""
    if wanted is not None and given.node and wanted > len(given.node):
        whole = len({*given.node, *given.client})
        raise UsageError(
            f"--cores {wanted}, allowed 1 to {len(given.node)}: there are {whole} here, and one is the caller's",
            hint="leave it out for all but one",
        )


def _told(bundle: Path, objective: Objective, found: Tuned, cores: str) -> str:
    from edgekit.devices.machine import this_machine

    return (
        f"edgekit tune {bundle.name}, {objective}: {found.trial.rate_hz:.4g} requests a second at "
        f"{found.trial.percentile_ms:.3g} ms\nmeasured on {this_machine().cpu}; {cores}"
    )


def _payload(bundle: Path, objective: Objective, found: Tuned, cores: str, written: Path | None) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "slo": {"share": objective.share, "limit_ms": objective.limit_ms},
        "cores": cores,
        "best": _entry(found.best, *found.trials[found.best]),
        "defaults": None if found.usual is None else _entry(found.usual[0], found.rungs[-1].seconds, found.usual[1]),
        "tried": [_entry(settings, *trial) for settings, trial in found.trials.items()],
        "rungs": [{"seconds": rung.seconds, "settings": len(rung.found)} for rung in found.rungs],
        "drift": found.drift(),
        "written": None if written is None else str(written),
    }


def _entry(settings: Settings, seconds: float, trial: Trial) -> dict[str, Any]:
    return {
        "part": settings.part,
        **settings.options,
        "seconds": seconds,
        "rate_hz": trial.rate_hz,
        "percentile_ms": trial.percentile_ms,
        "closed_loop_hz": trial.closed_hz,
    }


def _show(out: Output, found: Tuned, objective: Objective, written: Path | None) -> None:
    columns = (
        Column("batch", number=True),
        Column("wait ms", number=True),
        Column("workers", number=True),
        Column("threads", number=True),
        Column("part", style="cyan"),
        Column("requests/s", number=True),
        Column(f"p{100 * objective.share:g} ms", number=True),
        Column("tried s", number=True),
    )
    ordered = sorted(found.trials.items(), key=lambda pair: (pair[1][0], pair[1][1].score), reverse=True)
    rows = []
    for settings, (seconds, trial) in ordered[:SHOWN]:
        style = "bold" if settings == found.best else ""
        cells = (
            str(settings.max_batch),
            f"{settings.max_delay_ms:g}",
            str(settings.workers),
            str(settings.threads),
            settings.part,
            number_text(trial.rate_hz, 1),
            number_text(trial.percentile_ms, 2),
            f"{seconds:g}",
        )
        rows.append([Cell(cell, style) for cell in cells])
    out.table(Table(columns, rows))
    if len(ordered) > SHOWN:
        out.remark(f"and {len(ordered) - SHOWN} that were left earlier: --json or --plot shows them")
    out.line()
    best = found.best
    out.table(
        facts(
            [
                ("best", Cell(" ".join(best.words), "bold")),
                ("holds", f"{objective} at {found.trial.rate_hz:.4g} requests a second of one node"),
                *_gain(found),
                *([("written", str(written))] if written is not None else []),
            ]
        )
    )


def _gain(found: Tuned) -> list[tuple[str, str | Cell]]:
    """What `edgekit serve` carries without options, beside the best."""
    if found.usual is None:
        return []
    settings, trial = found.usual
    if settings == found.best:
        return [("defaults", "are the best of these")]
    if trial.rate_hz <= 0:
        return [("defaults", f"hold it at no rate tried ({settings})")]
    gain = found.trial.rate_hz / trial.rate_hz
    return [("defaults", f"{trial.rate_hz:.4g} requests a second, the best {gain:.2f}x as many ({settings})")]
