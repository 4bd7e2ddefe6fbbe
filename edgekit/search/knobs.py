"""What each setting alone costs, measured on calibration samples: the numbers that an additive model adds.

Tokens: p[i][t] is the error energy where block i, alone, leaves t tokens. Going on from t to u tokens at block i costs
p[i][u] - p[i][t], so that a cascade adds up to what its last counts would cost at the blocks where they were reached.
Precision: the error energy of each group of weighted layers rounded alone (`quantizers.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, judge, run_model
from edgekit.passes.tokens.statistics import watch
from edgekit.progress import silent
from edgekit.quantizers.quantize import quantize, simulate
from edgekit.quantizers.sensitivity import sensitivities
from edgekit.registry import QUANTIZERS, TOKEN_METHODS
from edgekit.search.anatomy import latencies
from edgekit.search.narrowing import GONE, Shape, whole_shape
from edgekit.search.space import NO_METHOD
from edgekit.search.state import State
from edgekit.search.tables import Measured, PrecisionTable, TokenTable, WidthTable
from edgekit.search.token_probe import TokenProbe, levels_of
from edgekit.search.workshop import Workshop

HEAD_SHARES = (0.5,)
UNIT_SHARES = (0.5, 0.25)
ROUNDED_SAMPLES = 8


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
        probe = TokenProbe(shape, fewest, lambda keep: self._pruned(variant, method, keep))
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
        # Several blocks at once: what errors do one behind another.
        fewer_heads = tuple((part[0], most) for part, (_, most) in zip(table.half, whole, strict=True))
        fewer_units = tuple((most, part[1]) for part, (most, _) in zip(table.half, whole, strict=True))
        narrow, shallow = (
            tuple((table.cost(shape), self._narrowed(variant, shape)) for shape in shapes if shape != whole)
            for shapes in (
                [table.with_cheapest(parts, len(whole) // 2) for parts in (fewer_heads, fewer_units)],
                [table.with_cheapest((GONE,) * len(whole), len(whole) // 3)],
            )
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
