"""What each setting alone costs, measured on calibration samples: the numbers that an additive model adds.

Tokens: p[i][t] is the error energy where block i, alone, leaves t tokens. Going on from t to u tokens at block i costs
p[i][u] - p[i][t], so that a cascade adds up to what its last counts would cost at the blocks where they were reached.
Precision: the error energy of each group of weighted layers rounded alone (`quantizers.sensitivity`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, judge, run_model
from edgekit.passes.tokens.schedule import Shape as TokenShape
from edgekit.passes.tokens.statistics import watch
from edgekit.progress import silent
from edgekit.quantizers.quantize import quantize, simulate
from edgekit.quantizers.sensitivity import sensitivities
from edgekit.registry import QUANTIZERS, TOKEN_METHODS
from edgekit.search.anatomy import latencies
from edgekit.search.narrowing import GONE, Shape, whole_shape
from edgekit.search.space import NO_METHOD
from edgekit.search.state import State
from edgekit.search.workshop import Workshop

# Shares of the content tokens between which schedules choose, and those at which the error is measured.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25)
HEAD_SHARES = (0.5,)
UNIT_SHARES = (0.5, 0.25)
PROBED = (0.8, 0.65, 0.5, 0.25)
FLOAT_ERROR = 1e-9
ROUNDED_SAMPLES = 8


@dataclass(frozen=True)
class Measured:
    """One change alone, or several at once: `error` energy, `drop` in points, on calibration samples."""

    error: float
    drop: float


@dataclass(frozen=True)
class TokenTable:
    """`potential[i]`: by level, the error of block i leaving so many. `together`: whole schedules beside their sum."""

    shape: TokenShape
    fewest_share: float
    levels: tuple[int, ...]
    potential: tuple[tuple[float, ...], ...]
    probes: tuple[Measured, ...]
    together: tuple[tuple[float, Measured], ...]

    def cost(self, block: int, before: int, after: int) -> float:
        rows = self.potential[block]
        return max(0.0, rows[self.levels.index(after)] - rows[self.levels.index(before)])

    def allows(self, before: int, after: int) -> bool:
        content = before - self.shape.protected
        return after == before or (
            after < before and after - self.shape.protected >= math.ceil(self.fewest_share * content)
        )


@dataclass(frozen=True)
class PrecisionTable:
    """`errors`: by group, alone. `whole`: everything rounded."""

    errors: Mapping[str, float]
    whole: Measured


def energy(reference: Outputs, actual: Outputs) -> float:
    """Of the change over that of the answers, all floating-point outputs together."""
    noise = signal = 0.0
    for name, want in reference.items():
        if np.issubdtype(want.dtype, np.floating):
            wanted = want.astype(np.float64)
            noise += float(np.square(wanted - actual[name]).sum())
            signal += float(np.square(wanted).sum())
    return noise / max(signal, 1e-300)


def lost(model: Model, reference: Outputs, actual: Outputs) -> float:
    """Points, without labels: a classifier on what it was trained on is sure of itself, and little seems lost, so that
    half of the changed answers count."""
    quality = judge(model.evolve_quietly(labels=()), reference, actual)
    changed = 0.0 if quality.top1_agreement is None else 100 * (1 - quality.top1_agreement)
    return max(quality.drop, 0.5 * changed)


@dataclass(frozen=True)
class WidthTable:
    """By block, alone: what fewer heads, fewer hidden units, or no block at all cost. `whole`: heads and units that
    there are. `together`, `shallow`: shapes of many narrower blocks, and of few blocks, beside the sum."""

    whole: Shape
    heads: tuple[Mapping[int, float], ...]
    units: tuple[Mapping[int, float], ...]
    gone: tuple[float, ...]
    probes: tuple[Measured, ...]
    together: tuple[tuple[float, Measured], ...] = ()
    shallow: tuple[tuple[float, Measured], ...] = ()

    @property
    def half(self) -> Shape:
        """About half of the heads and units of every block."""
        return tuple(
            (_nearest(heads, self.whole[block][0]), _nearest(units, self.whole[block][1]))
            for block, (heads, units) in enumerate(zip(self.heads, self.units, strict=True))
        )

    def cost(self, shape: Shape) -> float:
        """What the narrower and the missing blocks of `shape` cost alone, added up."""
        rows = zip(self.heads, self.units, self.gone, shape, strict=True)
        return sum(gone if part == GONE else heads[part[0]] + units[part[1]] for heads, units, gone, part in rows)


def _nearest(counts: Mapping[int, float], whole: int) -> int:
    """Of those that are fewer than all the one nearest to half; all where there is no other."""
    return min((count for count in counts if count < whole), key=lambda count: abs(count - whole / 2), default=whole)


class Knobs:
    """Measures on demand and remembers in `state`. `samples`: of the calibration data. `time_left`: asked before each
    block whose tokens or widths are probed."""

    def __init__(self, workshop: Workshop, state: State, samples: Sequence[Sample]) -> None:
        self.workshop, self.state, self.samples = workshop, state, samples
        self.time_left: Callable[[], bool] = lambda: True
        self._references: dict[str, Outputs] = {}

    def _reference(self, variant: str) -> Outputs:
        if variant not in self._references:
            self._references[variant] = run_model(self._named(self.workshop.model(variant)), self.samples)
        return self._references[variant]

    def _named(self, model: Model) -> Model:
        return model.evolve_quietly(output_names=self.workshop.prepared()[0].output_names)

    def tokens(self, variant: str, method: str) -> TokenTable | None:
        """None where the model has no encoder, the method does not fit it, or the time is up."""
        if self.workshop.path is None:
            return None
        model = self.workshop.model(variant)
        try:
            shape = watch(model, self.samples[:1])[1].shape
        except EdgekitError:
            return None
        fewest = TOKEN_METHODS.load(method)().fewest_share
        levels = levels_of(shape)
        probe = _Probe(shape, fewest, lambda keep: self._pruned(variant, method, keep))
        rows = []
        try:
            for block in range(shape.blocks):
                if not self.time_left():
                    return None
                self.workshop.progress(f"measure {method}", block, shape.blocks)
                rows.append(probe.potential(block, levels))
            together = [probe.together(removed) for removed in (0.35, 0.6)]
        except EdgekitError:
            return None
        return TokenTable(shape, fewest, levels, tuple(rows), tuple(probe.seen), tuple(together))

    def _pruned(self, variant: str, method: str, keep: tuple[int, ...]) -> Measured:
        def measure() -> list[float]:
            pruned = self._named(self.workshop.pruned(variant, method, keep))
            return self._against(variant, run_model(pruned, self.samples))

        return Measured(*self.state.remember(f"pruned/{variant}/{method}/{keep}", measure))

    def _against(self, variant: str, outputs: Outputs) -> list[float]:
        reference = self._reference(variant)
        return [energy(reference, outputs), lost(self.workshop.original, reference, outputs)]

    def widths(self, variant: str) -> WidthTable | None:
        """None where the model has no encoder, or the time is up."""
        if self.workshop.path is None:
            return None
        try:
            whole = whole_shape(self.workshop.model(variant))
            return self._widths(variant, whole)
        except EdgekitError:
            return None

    def _widths(self, variant: str, whole: Shape) -> WidthTable | None:
        probes: list[Measured] = []

        def alone(block: int, part: tuple[int, int]) -> float:
            probes.append(self._narrowed(variant, (*whole[:block], part, *whole[block + 1 :])))
            return probes[-1].error

        heads, units, gone = [], [], []
        for block, (most_heads, most_units) in enumerate(whole):
            if not self.time_left():
                return None
            self.workshop.progress("measure widths", block, len(whole))
            fewer = sorted({max(1, round(share * most_heads)) for share in HEAD_SHARES} - {most_heads}, reverse=True)
            narrower = sorted({max(8, round(share * most_units / 8) * 8) for share in UNIT_SHARES} - {most_units})
            heads.append({most_heads: 0.0, **{count: alone(block, (count, most_units)) for count in fewer}})
            units.append({most_units: 0.0, **{count: alone(block, (most_heads, count)) for count in narrower[::-1]}})
            gone.append(alone(block, GONE) if block else np.inf)
        table = WidthTable(whole, tuple(heads), tuple(units), tuple(gone), tuple(probes))
        # Many blocks at once, in their heads, their units and their number: what errors do one behind another.
        fewer_heads = tuple((part[0], most) for part, (_, most) in zip(table.half, whole, strict=True))
        fewer_units = tuple((most, part[1]) for part, (most, _) in zip(table.half, whole, strict=True))
        fewer_blocks = tuple(GONE if block % 2 else part for block, part in enumerate(whole))
        narrow, shallow = (
            tuple((table.cost(shape), self._narrowed(variant, shape)) for shape in shapes if shape != whole)
            for shapes in ((fewer_heads, fewer_units), (fewer_blocks,))
        )
        seen = tuple(one for _, one in (*narrow, *shallow))
        return replace(table, probes=(*probes, *seen), together=narrow, shallow=shallow)

    def _narrowed(self, variant: str, shape: Shape) -> Measured:
        def measure() -> list[float]:
            made = self._named(self.workshop.pruned(variant, NO_METHOD, None, shape))
            return self._against(variant, run_model(made, self.samples))

        return Measured(*self.state.remember(f"narrowed/{variant}/{shape}", measure))

    def precision(self, variant: str, precision: str, format: str) -> PrecisionTable | None:
        """None where the quantizer cannot have this model. Rounding is not learned here, which takes minutes: what is
        built learns it, and its answers correct the table."""
        scheme = self.workshop.exporters[format].scheme(self.workshop.device)

        def measure() -> dict[str, Any] | None:
            self.workshop.progress(f"measure {precision}", 0, 0)
            base = self.workshop.prepared(variant)[0]
            options = replace(self.workshop.options, learned_rounding=False)
            try:
                made = quantize(base, precision, scheme, options, (), silent)
            except EdgekitError:
                return None
            errors: dict[str, float] = {}
            if made.quantization is not None and made.quantization.weights:
                parts = {group.name: group.layers for group in self.workshop.groups(variant, NO_METHOD, None)}
                rows = sensitivities(base, made, ROUNDED_SAMPLES, self.workshop.progress, parts)
                errors = dict.fromkeys(parts, 0.0) | {row.layer: 10 ** (-row.sqnr_db / 10) for row in rows}
            try:
                whole = self._against(variant, run_model(simulate(made), self.samples))
            except (EdgekitError, RuntimeError):  # a half-precision operator that this processor lacks
                whole = [1e-6, 0.0]
            return {"errors": errors, "whole": whole}

        name = scheme.name if QUANTIZERS.load(precision).reads_scheme else "any"
        found = self.state.remember(f"precision/{variant}/{precision}/{name}", measure)
        return None if found is None else PrecisionTable(found["errors"], Measured(*found["whole"]))

    def variant(self, variant: str) -> Measured:
        """Against the whole model."""

        def measure() -> list[float]:
            return self._against("whole", self._reference(variant))

        return Measured(*self.state.remember(f"variant/{variant}", measure))

    def latencies(
        self,
        variant: str,
        method: str,
        keep: tuple[int, ...] | None,
        precision: str,
        format: str,
        shape: Shape | None = None,
    ) -> Mapping[str, float]:
        """Milliseconds by group on the device, as predicted."""

        def count() -> dict[str, float]:
            captured = self.workshop.prepared(variant, method, keep, shape)[0]
            return latencies(captured, self.workshop.path, precision, self.workshop.device, format)

        return self.state.remember(f"latency/{variant}/{method}/{keep}/{shape}/{precision}/{format}", count)


def levels_of(shape: TokenShape) -> tuple[int, ...]:
    """Numbers of tokens, most first, protected ones counted."""
    content = shape.tokens - shape.protected
    return tuple(dict.fromkeys(shape.protected + max(1, round(share * content)) for share in SHARES))


class _Probe:
    """The potentials of a method, by schedules that reduce at one block, or just before it where one step may not go
    so far at once."""

    def __init__(self, shape: TokenShape, fewest_share: float, measure: Callable[[tuple[int, ...]], Measured]) -> None:
        self.shape, self.fewest_share, self.measure = shape, fewest_share, measure
        self.seen: list[Measured] = []
        self._known: list[list[tuple[int, float]]] = []

    def potential(self, block: int, levels: Sequence[int]) -> tuple[float, ...]:
        """By level, interpolated between what was measured; levels that cannot be reached cost without end."""
        content, protected = self.shape.tokens - self.shape.protected, self.shape.protected
        own: list[tuple[int, float]] = [(self.shape.tokens, 0.0)]
        self._known.append(own)
        for share in PROBED:
            target = protected + max(1, round(share * content))
            keep = self._towards(block, target)
            if keep is None or target >= own[-1][0]:
                continue
            measured = self.measure(keep)
            self.seen.append(measured)
            before, earlier = self.shape.tokens, 0.0
            for index, count in enumerate(keep[:block]):
                earlier += self.at(index, count) - self.at(index, before)
                before = count
            own.append((target, max(own[-1][1], measured.error - earlier + self.at(block, before))))
        return tuple(self.at(block, level) for level in levels)

    def at(self, block: int, count: int) -> float:
        own = self._known[block]
        if count >= own[-1][0]:
            return float(np.interp(-count, [-known for known, _ in own], [error for _, error in own]))
        # Below the last probe the error goes on as steeply as it came.
        (above, first), (last, error) = own[-2] if len(own) > 1 else (own[0][0] + 1, 0.0), own[-1]
        return error + (error - first) / max(1, above - last) * (last - count)

    def together(self, removed: float) -> tuple[float, Measured]:
        """An even schedule down to `1 - removed` of the content: (the sum of its costs, what it costs)."""
        content, blocks = self.shape.tokens - self.shape.protected, self.shape.blocks
        keep = tuple(
            self.shape.protected + max(1, round(content * (1 - removed * (block + 1) / blocks)))
            for block in range(blocks)
        )
        total, before = 0.0, self.shape.tokens
        for block, count in enumerate(keep):
            total += max(0.0, self.at(block, count) - self.at(block, before))
            before = count
        measured = self.measure(keep)
        self.seen.append(measured)
        return total, measured

    def _towards(self, block: int, target: int) -> tuple[int, ...] | None:
        """All tokens as long as they can stay, `target` from `block` on; None where it cannot be reached there."""
        keep = [target]
        for _ in range(block):
            content = keep[0] - self.shape.protected
            most = self.shape.tokens
            if self.fewest_share > 0:
                most = min(most, self.shape.protected + math.floor(content / self.fewest_share))
            keep.insert(0, most)
        first = keep[0] - self.shape.protected
        if first < math.ceil(self.fewest_share * (self.shape.tokens - self.shape.protected)):
            return None
        return (*keep, *([target] * (self.shape.blocks - block - 1)))
