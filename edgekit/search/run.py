"""From a Recipe to the outcome of its search: which families there are, where the state lies, how long it may take."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import edgekit
from edgekit.bundle.cache import cache_root
from edgekit.candidates import Bench
from edgekit.devices.device import Device
from edgekit.devices.energy import energy
from edgekit.errors import DeviceError, UsageError
from edgekit.exporters.base import Exporter
from edgekit.model import Model, Sample
from edgekit.parity import Limits, Outputs, run_model
from edgekit.progress import Progress
from edgekit.quantizers.quantize import FLOAT, QuantizerOptions
from edgekit.recipe import Recipe
from edgekit.search.cuts import cut_jointly
from edgekit.search.knobs import Knobs
from edgekit.search.limits import USUAL_BUDGET, SearchLimits, parse_budget
from edgekit.search.loop import Goal, Search
from edgekit.search.outcome import Outcome
from edgekit.search.space import NO_METHOD, NO_VARIANT, Family
from edgekit.search.state import State
from edgekit.search.verify import Made, Verifier
from edgekit.search.workshop import Variant, Workshop
from edgekit.selection import Built
from edgekit.split_outcome import SplitOutcome
from edgekit.token_pruning import COMPARED, parse

# What `--quantize auto` means in a search.
SEARCHED = ("fp16", "int8", "int8-dynamic")
SMALL = ("int8-weight-only", "int4-weight-only")
# Knobs are measured on so many calibration samples, fewer where a forward pass takes long.
MOST_SAMPLES, LEAST_SAMPLES = 1024, 16
FORWARD_PASSES = 150
SHARE_FOR_KNOBS = 0.15


@dataclass(frozen=True)
class Searched:
    """`winner`: the chosen configuration with its artifact; `twin`: the float artifact of its format."""

    outcome: Outcome
    winner: Made
    twin: Made
    made: tuple[Made, ...]

    def cut(self, split: Callable[[Made], SplitOutcome]) -> tuple[Made, SplitOutcome]:
        """The winner and how it is cut; where bytes are limited, of several recipes the one that sends least."""
        limits = self.outcome.limits
        chosen = self.winner.verified.configuration
        others = [
            one
            for one in self.made
            if one.verified in self.outcome.front
            and one.verified.configuration != chosen
            and not limits.broken(one.verified.figures())
        ]
        return cut_jointly([self.winner, *others], split, limits)

    def whole(self, winner: Made) -> tuple[Built, ...]:
        """The float model, to compare the winner with; () where it won."""
        return () if self.twin.built is winner.built else (self.twin.built,)


def held(made: Made, recipe: Recipe) -> Bench:
    """What built it, held to the recipe's limits from now on."""
    return replace(made.bench, limits=Limits(recipe.max_drop, recipe.min_sqnr))


def search(
    recipe: Recipe,
    original: Model,
    device: Device,
    exporters: Mapping[str, Exporter],
    folder: Path,
    progress: Progress,
    *,
    before: Outputs | None = None,
    rounding: Path | None = None,
    goal: Goal | None = None,
    fresh: bool = False,
    variants: Mapping[str, Variant] | None = None,
) -> Searched:
    """`exporters`: by format, what the recipe and the device leave. `before`: answers from which the quality is
    counted, None: those of `original`. `rounding`: where unfinished rounding is kept.

    Raises UsageError for limits and budgets that cannot be, PlanError where nothing meets the limits.
    """
    limits = SearchLimits.parse(recipe.limit, recipe.max_drop)
    budget_s = parse_budget(recipe.budget or USUAL_BUDGET)
    _refuse(recipe, original, device, limits)
    start = time.monotonic()
    options = QuantizerOptions.of(recipe, rounding or folder / "rounding")
    workshop = Workshop(original, device, exporters, options, folder, recipe.threads, progress, variants=variants or {})
    state = State(state_path(recipe, original, device), fresh=fresh)
    samples = _samples(workshop, budget_s)
    verifier = Verifier(workshop, before, recipe.min_sqnr)
    engine = Search(
        Knobs(workshop, state, samples),
        verifier,
        state,
        families(recipe, workshop, limits),
        limits,
        goal or usual_goal(limits),
        budget_s - (time.monotonic() - start),
    )
    outcome = engine.run()
    chosen = outcome.chosen
    winner = engine.made.get(chosen.configuration) or verifier.verify(chosen.configuration, chosen.expected)
    twin = verifier.twin(chosen.configuration.family.format)
    return Searched(outcome, winner, twin, tuple(engine.made.values()))


def _refuse(recipe: Recipe, original: Model, device: Device, limits: SearchLimits) -> None:
    """Raises UsageError for what no search can do."""
    if limits.bytes_sent is not None and recipe.edge is None and recipe.cloud is None:
        raise UsageError("a limit on bytes without --edge or --cloud", hint="nothing is sent from one device")
    if limits.energy_mj is not None and energy(1.0, device) is None:
        raise UsageError(
            f"a limit on energy, and the profile {device.name} knows no power",
            hint="add power_w.load to the profile, or limit the latency",
        )
    for name, asked, left in (
        ("prune-tokens", recipe.prune_tokens, ("none", "auto")),
        ("prune-heads", recipe.prune_heads, ("none",)),
    ):
        if asked not in left:
            raise UsageError(
                f"--{name} {asked} with a search, which sets tokens and heads itself",
                hint=f"leave --{name} out, or --limit and --budget",
            )
    if recipe.channels_last:
        raise UsageError("a search takes images as NCHW", hint="search without --channels-last, then export the recipe")
    if original.onnx_path is not None:
        raise UsageError(
            f"{original.name} is a trained .onnx file, and layers are searched in a torch module",
            hint="give the module that the file was exported from, or --quantize auto without --limit and --budget",
        )


def usual_goal(limits: SearchLimits) -> Goal:
    """Where the time is limited the best is what loses least in it; elsewhere the fastest."""
    return "quality" if limits.latency_ms is not None or limits.energy_mj is not None else "latency"


def state_path(recipe: Recipe, original: Model, device: Device) -> Path:
    """One file for each model, device and recipe of this version; limits and budget may change between searches, as
    what was measured stays true."""
    asked = {
        name: value
        for name, value in recipe.provenance().items()
        if name not in ("limit", "budget", "max_drop", "min_sqnr", "include_float", "name")
    }
    shapes = [(len(part), _digest(part)) for part in (original.calibration, original.held_out)]
    known = (edgekit.__version__, original.source.digest, device.name, sorted(asked.items()), shapes)
    return cache_root() / "search" / f"{hashlib.sha256(repr(known).encode()).hexdigest()[:24]}.json"


def _digest(samples: tuple[Sample, ...]) -> str:
    found = hashlib.sha256()
    for sample in samples:
        for value in sample.values():
            found.update(value.numpy().tobytes())
    return found.hexdigest()


def families(recipe: Recipe, workshop: Workshop, limits: SearchLimits) -> list[Family]:
    """Those of the whole model first, in the order of the device's formats. Of the precisions those that `auto` stands
    for elsewhere too; small weights, which save no time, only where the size is limited."""
    methods = [NO_METHOD]
    if workshop.path is not None and workshop.original.onnx_path is None:
        if recipe.prune_tokens == "auto" or recipe.prune_tokens == "none":
            methods += COMPARED
        else:
            methods.append(parse(recipe.prune_tokens).method)
    found = []
    for variant in (NO_VARIANT, *workshop.variants):
        for method in methods:
            for format, exporter in workshop.exporters.items():
                runs = workshop.device.precisions(format)
                precisions = [name for name in exporter.precisions if name in runs and name != FLOAT]
                if recipe.quantize == "none":
                    precisions = []
                elif recipe.quantize == "auto":
                    usual = (*SEARCHED, *(SMALL if limits.by_size else ()))
                    precisions = [name for name in precisions if name in usual]
                else:
                    if recipe.quantize not in precisions:
                        continue
                    precisions = [recipe.quantize]
                if not workshop.original.calibration:
                    precisions = [name for name in precisions if name != "int8"]
                found += [Family(format, name, method, variant) for name in (FLOAT, *precisions)]
    if not found:
        raise DeviceError(
            f"{workshop.device.name} runs none of the formats in {recipe.quantize}", hint="leave --quantize out"
        )
    return found


def _samples(workshop: Workshop, budget_s: float) -> tuple[Sample, ...]:
    model = workshop.prepared()[0]
    samples = model.calibration or model.held_out or (model.example_inputs,)
    few = samples[:16]
    run_model(model, few[:2])
    start = time.monotonic()
    run_model(model, few)
    each = (time.monotonic() - start) / len(few)
    count = int(SHARE_FOR_KNOBS * budget_s / (FORWARD_PASSES * max(each, 1e-6)))
    return samples[: max(LEAST_SAMPLES, min(MOST_SAMPLES, count))]
