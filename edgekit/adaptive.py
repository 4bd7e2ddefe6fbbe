"""What `--widths` and `--exits` ask for: smaller variants of the same bundle, and early answers on one device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from edgekit.bundle.manifest import Variant
from edgekit.candidates import Bench
from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.parity import judge, run_model
from edgekit.passes.adaptive.blocks import block_paths
from edgekit.passes.adaptive.exits import AttachExits, check_depths
from edgekit.passes.adaptive.narrow import check_width
from edgekit.passes.adaptive.widths import OrderUnits, SlimEncoder
from edgekit.passes.base import Pipeline
from edgekit.passes.capture import Capture
from edgekit.passes.fold import FoldBatchNorm
from edgekit.recipe import Recipe
from edgekit.runtimes.coordinator.ladder_calibration import LadderCalibration, calibrate_ladder
from edgekit.runtimes.session import Session, SessionOptions
from edgekit.selection import Built, Packed
from edgekit.split_outcome import SplitOutcome
from edgekit.tier_bench import TierBench

# Of the samples; fewer early answers do not pay for the exit that every sample runs.
WORTHWHILE_SHARE = 0.05


def parse_widths(text: str) -> tuple[float, ...]:
    """Of the variants beside the whole model, the widest first: 1 itself is left out. Raises UsageError."""
    try:
        widths = [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--widths {text!r}, allowed shares of 1", hint="--widths 1.0,0.75,0.5") from None
    for width in widths:
        check_width(width)
    narrower = set(widths) - {1.0}
    if not narrower:
        raise UsageError(f"--widths {text} is the whole model alone", hint="name a narrower one: --widths 1.0,0.75,0.5")
    return tuple(sorted(narrower, reverse=True))


def parse_exits(text: str) -> tuple[int, ...] | None:
    """Numbers of blocks; None for auto. Raises UsageError."""
    if text == "auto":
        return None
    if re.fullmatch(r"\d+(,\d+)*", text) is None:
        raise UsageError(f"--exits {text!r}, allowed auto, none or numbers of blocks", hint="--exits 2,4")
    return tuple(int(word) for word in text.split(","))


def check_words(recipe: Recipe) -> tuple[int, ...] | None:
    """Before a model is loaded; the exits that are asked for by number. Raises UsageError for what cannot be."""
    if recipe.widths is not None:
        parse_widths(recipe.widths)
    depths = parse_exits(recipe.exits) if recipe.exits != "none" else None
    asked = _asked(recipe)
    others = {
        "--prune-tokens": recipe.prune_tokens != "none",
        "--compress-tokens": recipe.compress_tokens != "none",
        "--prune-weights": recipe.prune_weights != "none",
        "--channels-last": recipe.channels_last,
        "a search (--limit, --plot)": recipe.searches,
    }
    for other in (name for name, is_asked in others.items() if is_asked):
        raise UsageError(f"{asked} with {other}, allowed one of them", hint="export a bundle for each and compare them")
    return depths


def _asked(recipe: Recipe) -> str:
    return "--widths" if recipe.widths is not None else "--exits"


def check_adaptive(recipe: Recipe, model: Model) -> None:
    """Before minutes of work. Raises UsageError or SourceError for what cannot be made of `model`."""
    depths = check_words(recipe)
    if model.onnx_path is not None:
        raise UsageError(
            f"{_asked(recipe)} with the trained .onnx file {model.name}, allowed with a torch module",
            hint="give the module that the file was exported from",
        )
    paths = block_paths(model.module, model.name)
    if depths is not None:
        check_depths(depths, len(paths))


@dataclass(frozen=True)
class Adapter:
    """`original`: the user's module. `bench`: the whole model's on the device, `winner` what came of it."""

    recipe: Recipe
    original: Model
    bench: Bench
    winner: Built

    @cached_property
    def tiers(self) -> TierBench:
        return TierBench(self.bench, self.winner, self.recipe.max_drop)

    def run(self) -> SplitOutcome:
        """Raises what building an artifact raises, and DataError for exits that cannot be trained."""
        outcome = SplitOutcome()
        if self.recipe.widths is not None:
            outcome += self.widths(parse_widths(self.recipe.widths))
        if self.recipe.exits != "none":
            outcome += self.exits(parse_exits(self.recipe.exits))
        return outcome

    def widths(self, widths: Sequence[float]) -> SplitOutcome:
        """A part and a variant for each; the drop that it states is against the whole float model."""
        outcome = SplitOutcome()
        # A module says by `widths` that it was trained to be narrowed as it is: sorting would undo that.
        is_trained = hasattr(self.original.module, "widths")
        ordered = self.original if is_trained else OrderUnits()(self.original, self.bench.progress)
        for width in widths:
            self.bench.progress(f"width {width:g}", 0, 0)
            slim = SlimEncoder(width)(ordered)
            name = f"width-{100 * width:g}"
            model = Pipeline([Capture(), FoldBatchNorm()])(slim.evolve_quietly(name=f"{self.original.name}-{name}"))
            built = self.tiers.heads(model, name)[0]
            quality = judge(self.bench.model, self.bench.yardstick, built.answers)
            outcome += SplitOutcome(
                packed=(Packed(name, built),),
                variants=(Variant(name=name, parts=(name,), drop=round(quality.drop, 4)),),
                notes=(f"{slim.history[-1].detail}; {self._lost(quality.drop)}, {_times(built, self.winner)}",),
            )
        return outcome

    def _lost(self, drop: float) -> str:
        """A variant is chosen for its latency: what it loses is told, not refused."""
        allowed = self.recipe.max_drop
        return f"loses {drop:.2f} points" + (f", more than --max-drop {allowed:g}" if drop > allowed else "")

    def exits(self, asked: Sequence[int] | None) -> SplitOutcome:
        """The whole model in stages with an exit between each two; `asked` None takes those that pay."""
        depths = tuple(asked) if asked is not None else self._likely()
        model = self.bench.model
        teacher = torch.from_numpy(run_model(model, model.calibration)[model.output_names[0]])
        ladder = AttachExits(depths)(self.original, model, teacher, self.bench.progress)
        is_embedding = model.postprocess is not None and model.postprocess.kind == "embedding"
        needed = ladder.stages[:-1] if is_embedding else ladder.stages
        stages = [self.tiers.heads(stage, f"stage-{index}")[0] for index, stage in enumerate(needed, 1)]
        heads = [self.tiers.heads(head, f"exit-{depth}")[0] for head, depth in zip(ladder.heads, depths, strict=True)]
        if is_embedding:
            return self._depths(depths, stages, heads)
        return self._calibrated(depths, stages, heads, is_asked=asked is not None)

    def _depths(self, depths: Sequence[int], stages: Sequence[Built], heads: Sequence[Built]) -> SplitOutcome:
        """An embedding has no confidence: each depth is a variant of its own, to be chosen by budget."""
        early, _ = self._answers(stages, heads)
        outcome = SplitOutcome()
        output = self.bench.model.output_names[0]
        costs = costs_of(stages, heads)
        for index, (depth, answers) in enumerate(zip(depths, early, strict=True)):
            quality = judge(self.bench.model, self.bench.yardstick, {output: answers})
            parts = tuple(f"stage-{place}" for place in range(1, index + 2))
            below = sum(_expected_ms(head) for head in heads[:index])
            share = (costs[index] - below) / _expected_ms(self.winner)
            outcome += SplitOutcome(
                packed=(Packed(parts[-1], stages[index]), Packed(f"exit-{depth}", heads[index])),
                variants=(
                    Variant(name=f"depth-{depth}", parts=(*parts, f"exit-{depth}"), drop=round(quality.drop, 4)),
                ),
                notes=(f"depth {depth}: {self._lost(quality.drop)}, {share:.2f}x the latency of the whole expected",),
            )
        return outcome

    def _likely(self) -> tuple[int, ...]:
        """Where the module brings heads, else behind a third and two thirds of the blocks."""
        brought = getattr(self.original.module, "exits", None)
        if isinstance(brought, torch.nn.ModuleDict) and len(brought):
            return tuple(sorted(int(depth) for depth in brought))
        blocks = len(block_paths(self.original.module, self.original.name))
        return tuple(sorted({max(1, round(blocks / 3)), max(1, round(2 * blocks / 3))} - {blocks}))

    def _calibrated(
        self, depths: Sequence[int], stages: Sequence[Built], heads: Sequence[Built], *, is_asked: bool
    ) -> SplitOutcome:
        early, final = self._answers(stages, heads)
        truth, costs = self._truth(), costs_of(stages, heads)
        found = calibrate_ladder(early, final, truth, costs, self.recipe.max_drop)
        answered = 1 - found.reached.left[-1]
        if answered < WORTHWHILE_SHARE and not is_asked:
            why = f"{100 * answered:.0f} % of the samples could leave within --max-drop {self.recipe.max_drop:g}"
            return SplitOutcome(notes=(f"no early exit: {why}",))
        drop = round(100 * (self._whole_accuracy(truth) - found.reached.accuracy), 4)
        parts = tuple(f"stage-{index}" for index in range(1, len(stages) + 1))
        exits = found.exits([f"exit-{depth}" for depth in depths], drop)
        packed = [Packed(name, built) for name, built in zip(parts, stages, strict=True)]
        packed += [Packed(exit.part, built) for exit, built in zip(exits, heads, strict=True)]
        variant = Variant(name="exits", parts=parts, exits=exits, shares=found.schedule.shares, drop=drop)
        return SplitOutcome(packed=tuple(packed), variants=(variant,), notes=_exit_notes(depths, found, costs, drop))

    def _answers(self, stages: Sequence[Built], heads: Sequence[Built]) -> tuple[list[np.ndarray], np.ndarray]:
        """Of the artifacts on the judged samples: [N, classes] at each exit, and at the end."""
        options = SessionOptions(threads=self.bench.threads)
        output = self.bench.model.output_names[0]
        early: list[list[np.ndarray]] = [[] for _ in heads]
        final: list[np.ndarray] = []
        with ExitStack() as opened:
            below, reading = (
                [opened.enter_context(one.artifact.open(one.model, options)) for one in built if one.artifact]
                for built in (stages, heads)
            )
            for sample in self.bench.samples:
                values = {name: value.numpy() for name, value in sample.items()}
                for index, session in enumerate(below):
                    values |= _run(session, values)
                    if index < len(reading):
                        early[index].append(_run(reading[index], values)[output])
                final += [values[output]] if output in values else []
        return [np.concatenate(rows) for rows in early], np.concatenate(final) if final else np.empty(0)

    def _truth(self) -> np.ndarray:
        """The classes of the judged samples: the labels, else what the whole float model says."""
        answers = self.bench.yardstick[self.bench.model.output_names[0]]
        labels = self.bench.model.labels
        return np.asarray(labels) if len(labels) == len(answers) else answers.argmax(-1)

    def _whole_accuracy(self, truth: np.ndarray) -> float:
        answers = self.bench.yardstick[self.bench.model.output_names[0]]
        return float((answers.argmax(-1) == truth).mean())


def costs_of(stages: Sequence[Built], heads: Sequence[Built]) -> list[float]:
    """Expected ms on the device up to and with each exit, and to the end."""
    total, costs = 0.0, []
    for index, stage in enumerate(stages):
        total += _expected_ms(stage)
        if index < len(heads):
            total += _expected_ms(heads[index])
        costs.append(total)
    return costs


def _exit_notes(
    depths: Sequence[int], found: LadderCalibration, costs: Sequence[float], drop: float
) -> tuple[str, ...]:
    notes = [
        f"exit behind block {depth}: {100 * left:.0f} % leave; temperature {at:.2f}, expected calibration error "
        f"{error:.3f} ({raw:.3f} without) on {found.judged} samples"
        for depth, left, at, error, raw in zip(
            depths, found.reached.left, found.temperatures, found.errors, found.raw_errors, strict=False
        )
    ]
    mean, worst = (cost / costs[-1] for cost in (found.reached.cost, found.schedule.worst(costs)))
    notes.append(
        f"exits: {mean:.2f} of the whole ladder's cost on average, {worst:.2f} at worst over a window of "
        f"{found.schedule.window} requests; loses {drop:.2f} points"
    )
    return tuple(notes)


def _run(session: Session, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return session.run({spec.name: values[spec.name] for spec in session.inputs})


def _expected_ms(built: Built) -> float:
    assert built.device is not None
    return built.device.latency_ms


def _times(built: Built, whole: Built) -> str:
    return f"{_expected_ms(built) / _expected_ms(whole):.2f}x the latency expected of the whole"
