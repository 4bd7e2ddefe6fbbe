"""The build flow: source -> captured Model -> candidates, gated and timed -> the best one, packed as a Bundle."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from edgekit.bundle import Bundle, check_folder, check_output
from edgekit.candidates import Bench
from edgekit.devices.device import Device, load_device
from edgekit.errors import EdgekitError
from edgekit.exporters.base import Exporter
from edgekit.idle import refuse_idle
from edgekit.model import Model
from edgekit.packing import installed_versions, pack
from edgekit.parity import Limits, Outputs, judged_samples, run_model
from edgekit.passes.layout import TakeChannelsLast
from edgekit.preparation import prepare as prepare
from edgekit.progress import Progress, silent
from edgekit.quantizers.quantize import QuantizerOptions, proposed_precisions, wants_static
from edgekit.recipe import Recipe
from edgekit.registry import EXPORTERS
from edgekit.reporting import Evidence
from edgekit.selection import Built, Candidate, choose, float_twin
from edgekit.shrinking import check_shrinking, forget_recovery, keep_task, shorten, shrink
from edgekit.sources import resolve
from edgekit.split_outcome import SplitOutcome
from edgekit.unfinished import full_disk_told, unfinished_folder

if TYPE_CHECKING:
    from edgekit.search.loop import Outcome


@dataclass(frozen=True)
class ExportResult:
    """`bundle` is on disk and verified; `summary` is what `export --json` prints. `search`: what was tried, where the
    recipe asked for a search."""

    bundle: Bundle
    built: tuple[Built, ...]
    summary: dict[str, Any]
    search: Outcome | None = None

    def to_json(self) -> dict[str, Any]:
        return self.summary


def export(
    source: str | torch.nn.Module,
    example_inputs: Any = None,
    *,
    calibration: str | Path | Iterable[Any] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Bundle:
    """Takes a model to `device`, and proves it right. `options` are the fields of `Recipe` (device, output, ...).

    `source`: a module, or what the command line takes. `example_inputs`: a tensor, tuple or dict by name.
    `calibration`: a folder, or an iterable of inputs (a DataLoader will do). Raises UsageError for an unknown option,
    and any EdgekitError of the build; nothing is then left at the output path.
    """
    label = source if isinstance(source, str) else type(source).__name__.lower()
    recipe = Recipe.of({"source": label, **options}, origin="option")
    data = str(calibration) if isinstance(calibration, Path) else calibration
    return export_recipe(
        recipe, module=source, example_inputs=example_inputs, calibration=data, progress=progress
    ).bundle


def export_recipe(
    recipe: Recipe,
    *,
    module: str | torch.nn.Module | None = None,
    example_inputs: Any = None,
    calibration: str | Iterable[Any] | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> ExportResult:
    """The whole flow for `recipe`; `module`, `example_inputs` and `calibration` replace what the recipe names. `fresh`:
    a search begins anew, whatever is known of this model."""
    start = time.perf_counter()
    torch.manual_seed(recipe.seed)
    device = load_device(recipe.device)
    refuse_idle(recipe, _formats(recipe, device))
    check_shrinking(recipe)
    progress("load the model and its data", 0, 0)
    original = resolve(
        module if module is not None else recipe.source,
        example_inputs=example_inputs,
        calibration=calibration if calibration is not None else recipe.calibration,
        calibration_samples=recipe.calibration_samples,
        name=recipe.name,
    )
    original = keep_task(recipe, original, progress)
    output = Path(recipe.output or f"{original.name}-{device.name}.edgekit")
    check_output(output, force=recipe.force)
    check_folder(output)
    adapts = recipe.widths is not None or recipe.exits != "none"
    if adapts:
        _check_adaptive(recipe, original)
    original, before = shrink(recipe, original, progress)
    if recipe.searches:
        return _searched(recipe, original, before, output, fresh, start, progress)
    model, steps = prepare(original, progress)
    if recipe.prune_tokens != "none" or recipe.prune_heads != "none":
        before = run_model(model, judged_samples(model)) if before is None else before
        model, steps = prepare(shorten(recipe, original, progress), progress)
    if recipe.channels_last:
        model = TakeChannelsLast()(model, progress)
        original = original.evolve_quietly(
            example_inputs=model.example_inputs,
            calibration=model.calibration,
            held_out=model.held_out,
            dynamic=model.dynamic,
            preprocess=model.preprocess,
        )
    if recipe.edge or recipe.cloud:
        _check_split(recipe, model)
    with TemporaryDirectory(prefix="edgekit-") as folder, unfinished_folder(recipe, original) as unfinished:
        bench = Bench(
            model=model,
            device=device,
            limits=Limits(recipe.max_drop, recipe.min_sqnr),
            options=QuantizerOptions.of(recipe, unfinished),
            folder=Path(folder),
            threads=recipe.threads,
            progress=progress,
            original=before,
        )
        with full_disk_told(folder):
            built = _build(recipe, bench)
        winner, outcome = choose(built, device)
        split = _split(recipe, bench, winner) if recipe.edge or recipe.cloud else SplitOutcome()
        if adapts:
            split += _adapt(recipe, original, bench, winner)
        seconds = {"total": time.perf_counter() - start}
        evidence = Evidence(
            device=device,
            original=original,
            folded=model,
            winner=winner,
            twin=float_twin(winner, outcome),
            outcome=outcome,
            reference=bench.yardstick,
            steps=steps,
            threads=recipe.threads,
            seconds=seconds,
            versions=installed_versions(),
        )
        progress("measure and pack", 0, 0)
        bundle, summary = pack(recipe, output, evidence, split)
    forget_recovery(recipe, original)
    return ExportResult(bundle, tuple(outcome), summary)


def _searched(
    recipe: Recipe,
    original: Model,
    before: Outputs | None,
    output: Path,
    fresh: bool,
    start: float,
    progress: Progress,
) -> ExportResult:
    """The best of all recipes that the limits leave, instead of the one that the options name."""
    from edgekit.search.run import held, search

    device = load_device(recipe.device)
    exporters = _installed(recipe, device)
    with TemporaryDirectory(prefix="edgekit-") as folder, unfinished_folder(recipe, original) as unfinished:
        with full_disk_told(folder):
            place = Path(folder)
            found = search(
                recipe, original, device, exporters, place, progress, rounding=unfinished, before=before, fresh=fresh
            )
        winner, twin, split = found.winner, found.twin.built, SplitOutcome()
        if recipe.edge or recipe.cloud:
            winner, split = found.cut(lambda made: _split(recipe, held(made, recipe), made.built))
        evidence = Evidence(
            device=device,
            original=original,
            folded=winner.bench.model,
            winner=winner.built,
            twin=twin,
            outcome=found.candidates(winner),
            reference=winner.bench.yardstick,
            steps=winner.steps,
            threads=recipe.threads,
            seconds={"total": time.perf_counter() - start},
            versions=installed_versions(),
        )
        progress("measure and pack", 0, 0)
        bundle, summary = pack(recipe, output, evidence, split + SplitOutcome(notes=(found.outcome.told(),)))
    summary["search"] = found.outcome.to_json()
    return ExportResult(bundle, found.candidates(winner), summary, found.outcome)


def _installed(recipe: Recipe, device: Device) -> dict[str, Exporter]:
    """By format, in the device's order. Raises MissingExtraError where the packages of none are installed."""
    found: dict[str, Exporter] = {}
    missing: list[EdgekitError] = []
    for format in _formats(recipe, device):
        exporter = _exporter(format, recipe)
        try:
            exporter.check()
        except EdgekitError as error:
            missing.append(error)
        else:
            found[format] = exporter
    if not found:
        raise missing[0]
    return found


def _check_split(recipe: Recipe, model: Model) -> None:
    from edgekit.splitting import check_split

    check_split(recipe, model)


def _check_adaptive(recipe: Recipe, original: Model) -> None:
    from edgekit.adaptive import check_adaptive

    check_adaptive(recipe, original)


def _adapt(recipe: Recipe, original: Model, bench: Bench, winner: Built) -> SplitOutcome:
    from edgekit.adaptive import Adapter

    return Adapter(recipe, original, bench, winner).run()


def _split(recipe: Recipe, bench: Bench, winner: Built) -> SplitOutcome:
    """Imported here: an export for one device needs neither the solvers nor the codecs."""
    from edgekit.splitting import Splitter

    return Splitter(recipe, bench, winner).run()


def _formats(recipe: Recipe, device: Device) -> list[str]:
    """The formats to try, the device's own order. Raises DeviceError for one that it cannot run."""
    if recipe.format == "auto":
        return [name for name in device.formats if name in EXPORTERS]
    device.unit_for(recipe.format)
    return [recipe.format]


def _exporter(format: str, recipe: Recipe) -> Exporter:
    """TensorRT's opset follows from the parser on the device."""
    options = {"opset": recipe.opset} if recipe.opset is not None and format == "onnx" else {}
    exporter: Exporter = EXPORTERS.load(format)(**options)
    return exporter


def _build(recipe: Recipe, bench: Bench) -> list[Built]:
    """Every candidate, the float twin of each format first. A format whose packages are missing loses by that."""
    built: list[Built] = []
    for format in _formats(recipe, bench.device):
        exporter = _exporter(format, recipe)
        runs = bench.device.precisions(format)
        try:
            exporter.check()
            precisions = proposed_precisions(
                bench.model,
                recipe.quantize,
                exporter.precisions,
                runs,
                format,
                bench.device.name,
                exporter.scheme(bench.device).float_outputs,
            )
        except EdgekitError as error:
            if recipe.format != "auto":
                raise
            built.append(bench.left_out(Candidate(format, "-"), error.message, error))
            continue
        outrun = bench.outrun(format, precisions, built) if recipe.quantize == recipe.format == "auto" else ""
        if outrun:
            built.append(bench.left_out(Candidate(format, "-"), outrun))
            continue
        for precision in precisions:
            asked = recipe.quantize in (precision, "none")
            candidate = Candidate(format, precision, asked)
            outdone = bench.outdone(candidate, built)
            built.append(bench.left_out(candidate, outdone) if outdone else bench.build(candidate, exporter))
        possible = [precision for precision in exporter.precisions if precision in runs]
        if recipe.quantize == "auto" and not bench.model.calibration and wants_static(bench.model, possible):
            why = "needs calibration data, and there is none: --calibration DIR"
            built.append(bench.left_out(Candidate(format, "int8"), why))
    return built
