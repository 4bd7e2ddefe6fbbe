"""The build flow: source -> captured Model -> candidates, gated and timed -> the best one, packed as a Bundle."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
from edgekit.parity import Limits, Outputs, Step, compare, judged_samples, run_model
from edgekit.passes.layout import TakeChannelsLast
from edgekit.preparation import prepare as prepare
from edgekit.programs import add_torch_program, check_engine, is_server
from edgekit.progress import Progress, silent
from edgekit.quantizers.quantize import QuantizerOptions, proposed_precisions, wants_static
from edgekit.recipe import Recipe
from edgekit.registry import EXPORTERS
from edgekit.reporting import Evidence
from edgekit.selection import Built, Candidate, choose, float_twin
from edgekit.shrinking import check_shrinking, forget_recovery, keep_task, shorten, shrink, without_auto
from edgekit.sources import resolve
from edgekit.split_outcome import SplitOutcome
from edgekit.unfinished import full_disk_told, unfinished_folder

if TYPE_CHECKING:
    from edgekit.search.outcome import Outcome


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
    check_engine(recipe, device)
    check_shrinking(recipe)
    if _adapts(recipe):
        _check_words(recipe)
    progress("load the model and its data", 0, 0)
    original = resolve(
        module if module is not None else recipe.source,
        example_inputs=example_inputs,
        calibration=calibration if calibration is not None else recipe.calibration,
        calibration_samples=recipe.calibration_samples,
        name=recipe.name,
    )
    original = keep_task(recipe, original, progress)
    output = _free_output(recipe, original, device)
    if _adapts(recipe):
        _check_adaptive(recipe, original)
    shrunk = shrink(recipe, original, progress)
    order = Order(recipe, device, shrunk.model, shrunk.before, shrunk.whole, output, start, progress)
    return _searched(order, fresh) if recipe.searches else _built(order)


@dataclass(frozen=True)
class Order:
    """What is to be built. `original`: the model before capture, with the weights that stay. `before`: the whole
    model's answers, from which the quality is counted; None where they are those of `original`. `start`: of the
    export, by `time.perf_counter`."""

    recipe: Recipe
    device: Device
    original: Model
    before: Outputs | None
    whole: Model | None
    output: Path
    start: float
    progress: Progress


def _built(order: Order) -> ExportResult:
    """What the options name, in every format and precision that they leave open."""
    recipe = order.recipe
    order, model, steps = _captured(order)
    if _splits(recipe):
        _check_split(recipe, model)
    with TemporaryDirectory(prefix="edgekit-") as folder, unfinished_folder(recipe, order.original) as unfinished:
        bench = _bench(order, model, Path(folder), unfinished)
        with full_disk_told(folder):
            candidates = _build(recipe, bench)
        winner, outcome = choose(candidates, order.device)
        winner, outcome = _with_program(recipe, bench, winner, outcome)
        whole = _whole(order, bench, winner)
        split = _split(recipe, bench, winner) if _splits(recipe) else SplitOutcome()
        if _adapts(recipe):
            split += _adapt(recipe, order.original, bench, winner)
        evidence = _evidence(order, bench, winner, float_twin(winner, outcome), outcome, steps, whole)
        result = _packed(order, evidence, split)
    forget_recovery(recipe, order.original)
    return result


def _searched(order: Order, fresh: bool) -> ExportResult:
    """The best of all recipes that the limits leave, instead of the one that the options name."""
    from edgekit.search.run import held, search

    recipe, original, device = order.recipe, order.original, order.device
    exporters = _installed(recipe, device)
    with TemporaryDirectory(prefix="edgekit-") as folder, unfinished_folder(recipe, original) as unfinished:
        with full_disk_told(folder):
            place, progress, before = Path(folder), order.progress, order.before
            found = search(
                recipe, original, device, exporters, place, progress, rounding=unfinished, before=before, fresh=fresh
            )
        winner, split = found.winner, SplitOutcome()
        if _splits(recipe):
            winner, split = found.cut(lambda made: _split(recipe, held(made, recipe), made.built))
        outcome, whole, steps = [winner.built], found.whole(winner), winner.steps
        if winner.verified.configuration.prunes:
            steps = (compare("pruned", winner.bench.yardstick, winner.bench.reference), *steps)
        supplied, outcome = _with_program(recipe, winner.bench, winner.built, outcome)
        evidence = _evidence(order, winner.bench, supplied, found.twin.built, outcome, steps, whole)
        result = _packed(order, evidence, split + SplitOutcome(notes=(found.outcome.told(),)))
    return replace(result, search=found.outcome, summary={**result.summary, "search": found.outcome.to_json()})


def _free_output(recipe: Recipe, original: Model, device: Device) -> Path:
    """Where the bundle goes. Raises OutputError before minutes of work where it cannot."""
    output = Path(recipe.output or f"{original.name}-{device.name}.edgekit")
    check_output(output, force=recipe.force)
    check_folder(output)
    return output


def _captured(order: Order) -> tuple[Order, Model, tuple[Step, ...]]:
    """The graph with as few heads and tokens as asked for, in the layout asked for, what was done to it, and the order
    with the samples that go with it."""
    recipe, original, progress = order.recipe, order.original, order.progress
    model, steps = prepare(original, progress)
    if recipe.prune_tokens != "none" or recipe.prune_heads != "none":
        before = run_model(model, judged_samples(model)) if order.before is None else order.before
        shorter, steps, note = _shortened(order, model, steps)
        if shorter is not model:
            order = replace(order, before=before, whole=order.whole or model)
        if note:
            original = original.evolve_quietly(notes=(*original.notes, note))
        model, order = shorter, replace(order, original=original)
    if order.whole is not None:
        assert order.before is not None
        steps = (compare("pruned", order.before, run_model(model, judged_samples(model))), *steps)
    if recipe.channels_last:
        model = TakeChannelsLast()(model, progress)
        order = replace(
            order,
            original=original.evolve_quietly(
                example_inputs=model.example_inputs,
                calibration=model.calibration,
                held_out=model.held_out,
                dynamic=model.dynamic,
                preprocess=model.preprocess,
            ),
        )
    return order, model, steps


def _shortened(order: Order, model: Model, steps: tuple[Step, ...]) -> tuple[Model, tuple[Step, ...], str]:
    """With fewer heads and tokens than `model`, and a note where auto takes none because no time would be gained."""
    from edgekit.whole import decline

    recipe, progress = order.recipe, order.progress
    shorter, shorter_steps = prepare(shorten(recipe, order.original, progress), progress)
    asked = without_auto(recipe)
    if asked == recipe:
        return shorter, shorter_steps, ""
    if (asked.prune_tokens, asked.prune_heads) != ("none", "none"):
        model, steps = prepare(shorten(asked, order.original, progress), progress)
    exporter = next(iter(_installed(recipe, order.device).values()))
    with TemporaryDirectory(prefix="edgekit-") as folder:
        note = decline(model, shorter, exporter, order.device, recipe.threads, Path(folder))
    return (model, steps, note) if note else (shorter, shorter_steps, "")


def _whole(order: Order, bench: Bench, winner: Built) -> tuple[Built, ...]:
    """The model before it was pruned, in the winner's format; () where nothing was."""
    if order.whole is None:
        return ()
    from edgekit.whole import build_whole

    whole = TakeChannelsLast()(order.whole, order.progress) if order.recipe.channels_last else order.whole
    return build_whole(bench, whole, winner, _exporter(winner.candidate.format, order.recipe))


def _bench(order: Order, model: Model, folder: Path, unfinished: Path) -> Bench:
    recipe = order.recipe
    return Bench(
        model=model,
        device=order.device,
        limits=Limits(recipe.max_drop, recipe.min_sqnr),
        options=QuantizerOptions.of(recipe, unfinished),
        folder=folder,
        threads=recipe.threads,
        progress=order.progress,
        original=order.before,
    )


def _evidence(
    order: Order,
    bench: Bench,
    winner: Built,
    twin: Built | None,
    outcome: Sequence[Built],
    steps: tuple[Step, ...],
    whole: tuple[Built, ...] = (),
) -> Evidence:
    return Evidence(
        device=order.device,
        original=order.original,
        folded=bench.model,
        winner=winner,
        twin=twin,
        outcome=outcome,
        whole=whole,
        reference=bench.yardstick,
        steps=steps,
        threads=order.recipe.threads,
        seconds={"total": time.perf_counter() - order.start},
        versions=installed_versions(),
    )


def _with_program(recipe: Recipe, bench: Bench, winner: Built, outcome: Sequence[Built]) -> tuple[Built, list[Built]]:
    """The winner with the program of the torch engine, where that is asked for and the device is a server."""
    if recipe.engine != "torch" or not is_server(bench.device):
        return winner, list(outcome)
    supplied = add_torch_program(bench, winner)
    return supplied, [supplied if one is winner else one for one in outcome]


def _packed(order: Order, evidence: Evidence, split: SplitOutcome) -> ExportResult:
    order.progress("measure and pack", 0, 0)
    bundle, summary = pack(order.recipe, order.output, evidence, split)
    return ExportResult(bundle, tuple(evidence.outcome), summary)


def _splits(recipe: Recipe) -> bool:
    return recipe.edge is not None or recipe.cloud is not None


def _adapts(recipe: Recipe) -> bool:
    return recipe.widths is not None or recipe.exits != "none"


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


def _check_words(recipe: Recipe) -> None:
    from edgekit.adaptive import check_words

    check_words(recipe)


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
