"""`edgekit export`: its options are the fields of Recipe."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import GroupedOption, NameType
from edgekit.cli.command import command as make_command
from edgekit.cli.drawing import check_path, draw
from edgekit.cli.ladders import ladders
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.run_text import writing_part
from edgekit.cli.search_front import search_shapes, show_search
from edgekit.cli.wording import count_text, db_text, ms_text, percent_text, quality_text, size_text
from edgekit.devices.device import load_device
from edgekit.errors import PlanError, UsageError
from edgekit.option import Option
from edgekit.recipe import Recipe, read_recipe, recipe_options
from edgekit.report.text import PRUNING

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.pipeline import ExportResult
    from edgekit.report.model import Candidate, EvaluationReport
    from edgekit.search.outcome import Found

TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING}


def _click_option(option: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Unset options stay None, so that a recipe file's value stands."""
    choices = f" One of {', '.join(option.choices())}." if option.choices is not None else ""
    default = "" if option.default is None or option.required else f"  [default: {_shown(option)}]"
    settings: dict[str, Any] = {
        "default": None,
        "help": option.help[:1].upper() + option.help[1:] + "." + choices + default,
        "heading": option.group,
        "cls": GroupedOption,
    }
    if option.type is bool:
        return click.option(f"{option.flag}/--no-{option.flag[2:]}", option.name, **settings)
    names = [*([option.short] if option.short else []), option.flag, option.name]
    if option.repeats:
        joined: dict[str, Any] = {"multiple": True, "default": (), "callback": _joined, "metavar": option.metavar}
        return click.option(*names, type=click.STRING, **{**settings, **joined})
    if option.choices is not None:
        settings |= {"type": NameType(option.kind, option.choices), "metavar": "NAME"}
    elif option.suggestions is not None:
        settings |= {"type": NameType(option.name, option.suggestions, closed=False), "metavar": option.metavar}
    else:
        settings |= {"type": click.Path() if option.is_path else TYPES[option.type], "metavar": option.metavar}
    return click.option(*names, **settings)


def _joined(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    return ",".join(values) or None


def _shown(option: Option) -> str:
    if option.type is bool:
        return "on" if option.default else "off"
    return str(option.default)


def recipe_parameters(function: Callable[..., None]) -> Callable[..., None]:
    """The source as the argument, every other field of Recipe as an option."""
    for option in reversed(list(recipe_options())):
        if option.name == "source":
            kind = NameType("source", option.suggestions or (lambda: ()), closed=False)
            function = click.argument("source", required=False, type=kind)(function)
        else:
            function = _click_option(option)(function)
    return function


@make_command(
    """
    edgekit export efficientnet-lite0 --device jetson -o cats.edgekit
    edgekit export my_package.models:build --device raspberry-pi --calibration photos/ --max-drop 1.0
    edgekit export ./my-huggingface-model --device android --format executorch
    edgekit export detector.onnx --device jetson --quantize fp16
    edgekit export --recipe release.toml --device raspberry-pi-4
    edgekit export fashion-vit --device raspberry-pi-5 --limit latency=1.2ms --plot front.png
    """,
    name="export",
)
@recipe_parameters
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(),
    metavar="FILE",
    help="TOML file whose keys are the option names, with _ for -; options given here win.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where a search is asked for (--limit, --budget): draw its front as .svg, .html or .png.",
)
def command(out: Output, recipe_file: str | None, plot: Path | None, **options: Any) -> None:
    """Take the model SOURCE to a device, and prove it right.

    SOURCE is a sample's name, package.module:callable, a .pt2 or .onnx file, or a Hugging Face directory. Each format
    and precision that the device runs is built, compared with the float model on real data and timed; the best within
    the limits is packed as a bundle. Where the limits cannot be met nothing is written (exit code 8).

    With --limit or --budget all recipes are searched (`edgekit search`) for the best within the limits.
    """
    given = {name: value for name, value in options.items() if value is not None}
    file = read_recipe(recipe_file) if recipe_file is not None else {}
    recipe = Recipe.of({**file, **given}, origin="recipe key")
    for profile in (recipe.device, recipe.edge, recipe.cloud):
        if profile is not None:
            load_device(profile)  # a wrong name is told before torch takes seconds to load
    if plot is not None and not recipe.searches:
        raise UsageError("--plot draws the front of a search, and none is asked for", hint="add --limit or --budget")
    check_path(plot, recipe.force)
    run(out, recipe, plot)


def run(out: Output, recipe: Recipe, plot: Path | None = None, fresh: bool = False) -> None:
    """Exports, tells how it went, and draws the front of a search."""
    started = time.perf_counter()
    if recipe.searches:
        from edgekit.search.limits import USUAL_BUDGET, SearchLimits, parse_budget

        SearchLimits.parse(recipe.limit, recipe.max_drop)
        parse_budget(recipe.budget or USUAL_BUDGET)
    try:
        result = _exported(out, recipe, fresh)
    except PlanError as error:
        if error.found is not None:
            _show_found(out, error.found, recipe, plot)
        raise
    from edgekit.report.model import EvaluationReport

    if plot is not None and result.search is not None:
        title = f"{result.bundle.manifest.name} on {result.bundle.manifest.device}: recipes that nothing beats"
        draw(plot, search_shapes(result.search, title), title)
    out.emit(result.to_json())
    if not out.json:
        if result.search is not None:
            show_search(out, result.search)
            out.line()
        took_s = time.perf_counter() - started
        _show(out, EvaluationReport.from_json(result.bundle.report), result.bundle, took_s)
        if plot is not None:
            out.remark(f"drawn: {plot}")


def _exported(out: Output, recipe: Recipe, fresh: bool) -> ExportResult:
    with out.working() as progress:
        progress("import torch and the converters", 0, 0)
        from edgekit.pipeline import export_recipe

        try:
            return export_recipe(recipe, fresh=fresh, progress=progress)
        except KeyboardInterrupt as interrupt:
            kept = "what the search measured" if recipe.searches else "what was learned" if recipe.learns else ""
            if kept:
                interrupt.__notes__ = [f"{kept} is kept: the same command goes on with it"]
            raise


def _show_found(out: Output, found: Found, recipe: Recipe, plot: Path | None) -> None:
    """Of a search that ends without a choice."""
    if not found.front:
        return
    show_search(out, found)
    if plot is not None:
        title = f"{recipe.source} on {recipe.device}: recipes that nothing beats"
        draw(plot, search_shapes(found, title), title)
        out.remark(f"drawn: {plot}")


def _show(out: Output, report: EvaluationReport, bundle: Bundle, took_s: float) -> None:
    out.table(_candidates(report))
    if report.fallbacks:
        columns = (Column("layer", style="cyan"), Column("kept in"), Column("why"))
        rows = [(line.layer, line.precision, line.why) for line in report.fallbacks]
        out.line()
        out.table(Table(columns, rows, "Layers in higher precision"))
    if report.split:
        out.line()
        out.table(ladders(bundle.manifest))
    out.line()
    out.table(facts([*_chosen(report, bundle), *_spent(report, took_s)]))
    for note in report.notes:
        out.remark(f"note: {note}")
    _show_next(out, report, bundle)


def _show_next(out: Output, report: EvaluationReport, bundle: Bundle) -> None:
    """Commands for what came out."""
    path = shlex.quote(str(bundle.path))
    out.line()
    if bundle.manifest.parts[0].loop is None:
        out.line(f"next: edgekit run {path} --input FILE")
    elif writing_part(bundle, None) is not None:
        out.line(f'next: edgekit run {path} --input "a text to go on from"')
        out.line(f"      edgekit serve {path} --tier device")
    else:
        # Its steps feed each other: a node carries the state from one to the next.
        out.line(f"next: edgekit serve {path} --tier device")
    out.line(f"      edgekit inspect {path} --report report.html")
    if report.split:
        tier = "edge" if "edge" in bundle.manifest.tiers else "cloud"
        out.line(f"      edgekit plan {path} --link 10mbps,20ms")
        out.line(f"      edgekit serve {path} --tier {tier} --grpc-port 8102")
        out.line(f"      edgekit run {path} --input FILE --{tier} grpc://127.0.0.1:8102 --deadline 300ms")
    else:
        out.line(f"      edgekit benchmark {path} --threads {report.latency_ms.threads if report.latency_ms else 1}")


def _candidates(report: EvaluationReport) -> Table:
    """What was tried. `x float`: how many times the speed of the same format in fp32, on this machine, of the whole
    model where it was pruned and built whole in that format."""
    columns = (
        Column("candidate", style="cyan"),
        Column("agreement", number=True),
        Column("SQNR dB", number=True),
        Column("host ms", number=True),
        Column("x float", number=True),
        Column("device ms", number=True),
        Column("size", number=True),
        Column("verdict"),
    )
    floats = {one.format: one.host_p50_ms for one in report.candidates if one.precision == "fp32"}
    rows = [
        (
            _candidate(one),
            percent_text(one.agreement),
            db_text(one.sqnr_db),
            ms_text(one.host_p50_ms),
            _ratio(floats.get(one.format), one.host_p50_ms),
            _range(one),
            size_text(one.size_bytes) if one.size_bytes is not None else "-",
            Cell("chosen", "bold green") if one.chosen else Cell(one.why_not, "yellow"),
        )
        for one in report.candidates
    ]
    return Table(columns, rows, f"Candidates for {report.device_title or report.device}")


def _candidate(one: Candidate) -> str:
    """A format that was left out before any precision was tried stands alone."""
    name = one.format if one.precision == "-" else f"{one.format} {one.precision}"
    return f"whole: {name}" if one.whole else name


def _range(one: Candidate) -> str:
    if one.predicted_ms is None:
        return "-"
    return f"{ms_text(one.predicted_ms)} ({ms_text(one.predicted_low_ms)}-{ms_text(one.predicted_high_ms)})"


def _ratio(float_ms: float | None, own_ms: float | None) -> str:
    return f"{float_ms / own_ms:.2f}" if float_ms and own_ms else "-"


def _chosen(report: EvaluationReport, bundle: Bundle) -> list[tuple[str, str | Cell]]:
    rows: list[tuple[str, str | Cell]] = [
        ("bundle", Cell(f"{bundle.path} ({size_text(bundle.size_bytes)})", "bold")),
        ("holds", f"{report.format} {report.precision} for {report.device}"),
    ]
    rows += [(PRUNING[line.name], line.detail) for line in report.changes if line.name in PRUNING]
    if report.quality is not None:
        rows.append(("quality", quality_text(report.quality)))
    latency = report.latency_ms
    if latency is not None and latency.host is not None:
        rival = "the whole model in float" if any(one.whole for one in report.candidates) else "its float twin"
        gain = f", {latency.speedup:.2f}x the speed of {rival}" if latency.speedup else ""
        if latency.whole_host is not None and report.precision != "fp32":
            gain += f", {latency.whole_host / latency.host:.2f}x of it in {report.precision}"
        rows.append(("here", f"{ms_text(latency.host)} ms at {count_text(latency.threads, 'thread')}{gain}"))
    if bundle.signed_by is not None:
        rows.append(("signed by", f"{bundle.signed_by[:16]}..."))
    return rows


def _spent(report: EvaluationReport, took_s: float) -> list[tuple[str, str | Cell]]:
    """`took_s` from the start of the command, the import of torch and the converters included."""
    rows: list[tuple[str, str | Cell]] = [("took", f"{took_s:.1f} s")]
    if report.peak_memory_bytes is not None:
        rows.append(("peak memory", size_text(report.peak_memory_bytes)))
    return rows
