"""Successive refinement: a finer rate of a transform codec, given that the receiver has a coarser one.

What the receiver knows of a component is the bin that its coarse symbol names. A fine symbol is coded with its own
table, each entry weighted by how much of its bin lies in that coarse bin: no table is stored for it, and any two rates
of the ladder go together. Where each coarse bin is a union of fine ones (nearest rounding, steps apart by an odd
factor), coarse and refinement together cost what the fine rate alone would (Equitz and Cover, IEEE Trans. Inf. Theory
37(2), 1991), but for how well the coarse table fits; other ratios pay for bins that are cut in two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.entropy import (
    MAX_SYMBOL,
    ModelRuns,
    decode_runs,
    encode_runs,
    integer_table,
)
from edgekit.runtimes.codecs.range_coder import PRECISION, exact_model
from edgekit.runtimes.codecs.transform import TransformCodec

MAX_RATIO = 256.0  # of two steps
SLACK = 1e-5  # of a magnitude: float32 rounding may put a value on the other side of a bin's edge
PARTS = 1024  # an overlap counts in this many parts of a bin
_UNKNOWN = 2 * MAX_SYMBOL


def encode_refinement(codec: TransformCodec, arrays: Sequence[np.ndarray], coarse: int, fine: int) -> bytes:
    """What turns rate `coarse`, already sent for the same `arrays`, into rate `fine`. Raises CodecError."""
    _check_rates(codec, coarse, fine)
    codec.check_arrays(arrays)
    symbols = codec.quantize(arrays[0], fine)
    known = _known(codec, codec.quantize(arrays[0], coarse), coarse, fine)
    order, runs, centres = _coding(codec, known, coarse, fine)
    return encode_runs(symbols.ravel()[order] - centres, runs)


def decode_refinement(
    codec: TransformCodec,
    coarse_payload: bytes,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    coarse: int,
    fine: int,
) -> list[np.ndarray]:
    """The arrays of rate `fine`, bit for bit what its own payload would give. Raises CodecError."""
    _check_rates(codec, coarse, fine)
    codec.check_shapes(shapes)
    before = codec.symbols(coarse_payload, shapes[0], coarse)
    known = _known(codec, before, coarse, fine)
    order, runs, centres = _coding(codec, known, coarse, fine)
    found = decode_runs(payload, runs).astype(np.int64) + centres
    if np.abs(found).max(initial=0) > MAX_SYMBOL:
        raise CodecError(f"a symbol of {np.abs(found).max()}, allowed {MAX_SYMBOL}")
    symbols = np.empty(known.size, np.int32)
    symbols[order] = found
    return [codec.reconstruct(symbols.reshape(known.shape), shapes[0], fine)]


def _check_rates(codec: TransformCodec, coarse: int, fine: int) -> None:
    codec.check_rate(coarse)
    codec.check_rate(fine)
    ratio = float(codec.layouts[coarse].step) / float(codec.layouts[fine].step)
    if fine >= coarse or ratio > MAX_RATIO:
        raise CodecError(
            f"rate {coarse} refined to {fine}, steps apart by {ratio:.4g}, allowed a finer rate within {MAX_RATIO:g}"
        )


def _known(codec: TransformCodec, symbols: np.ndarray, coarse: int, fine: int) -> np.ndarray:
    """int64 [kept at fine, B, positions]: the coarse symbol of each fine one, _UNKNOWN where none was sent."""
    known = np.full((codec.features[0].shape[codec.axis], *symbols.shape[1:]), _UNKNOWN, np.int64)
    known[codec.layouts[coarse].channels] = symbols
    sent: np.ndarray = known[codec.layouts[fine].channels]
    return sent


def _coding(
    codec: TransformCodec, known: np.ndarray, coarse: int, fine: int
) -> tuple[np.ndarray, ModelRuns, np.ndarray]:
    """Fine symbols grouped by table and coarse symbol: their order, the runs, and int32 what to take off of each."""
    span = 2 * _UNKNOWN + 1
    tables = codec.choices[:, -1][codec.layouts[fine].classes].astype(np.int64)
    keys = (tables[:, None, :] * span + known + MAX_SYMBOL).ravel()
    order = np.argsort(keys, kind="stable")
    found, counts = np.unique(keys, return_counts=True)
    models, radii, centres = [], [], []
    for key in found.tolist():
        table, symbol = key // span, key % span - MAX_SYMBOL
        if symbol == _UNKNOWN:
            model, radius, centre = codec.tables.model(table), int(codec.tables.radii[table]), 0
        else:
            model, radius, centre = conditional(codec, table, symbol, coarse, fine)
        models.append(model)
        radii.append(radius)
        centres.append(centre)
    runs = ModelRuns(models, np.array(radii, np.int64), counts)
    return order, runs, np.repeat(np.array(centres, np.int32), counts)


def conditional(codec: TransformCodec, table: int, symbol: int, coarse: int, fine: int) -> tuple[object, int, int]:
    """The model of a fine symbol less its centre, from -radius to radius or escaping, where the coarse one is known."""
    key = (table, symbol, coarse, fine)
    found = codec.conditionals.get(key)
    if found is None:
        weights, centre = conditional_weights(codec, table, symbol, coarse, fine)
        found = exact_model(integer_table(weights, 1 << PRECISION)), len(weights) // 2 - 1, centre
        if len(codec.conditionals) < 1 << 14:
            codec.conditionals[key] = found
    return found


def conditional_weights(
    codec: TransformCodec, table: int, symbol: int, coarse: int, fine: int
) -> tuple[np.ndarray, int]:
    """Integers [2 m + 2] for the fine symbols centre - m .. centre + m and escape, and the centre.

    float64 throughout, each operation one that IEEE 754 fixes; sums are of integers.
    """
    layouts, rounding = codec.layouts, float(codec.rounding)
    low, high = _bin(symbol, float(layouts[coarse].step), rounding)
    slack = SLACK * max(abs(low), abs(high))
    step = float(layouts[fine].step)
    first, last = _symbol(low - slack, step, rounding), _symbol(high + slack, step, rounding)
    radius = (last - first + 1) // 2
    centre = first + radius
    row, reach = codec.tables.row(table), int(codec.tables.radii[table])
    weights = np.zeros(2 * radius + 2, np.int64)
    weights[-1] = 1
    for place, fine_symbol in enumerate(range(centre - radius, centre + radius + 1)):
        left, right = _bin(fine_symbol, step, rounding)
        overlap = math.floor(PARTS * (min(right, high) - max(left, low)) / (right - left))
        frequency = int(row[fine_symbol + reach]) if abs(fine_symbol) <= reach else 1
        weights[place] = 1 + frequency * max(overlap, 0) * 16
    return weights, centre


def _bin(symbol: int, step: float, rounding: float) -> tuple[float, float]:
    """The values that become `symbol`."""
    if symbol == 0:
        return -(1 - rounding) * step, (1 - rounding) * step
    near, far = (abs(symbol) - rounding) * step, (abs(symbol) + 1 - rounding) * step
    return (near, far) if symbol > 0 else (-far, -near)


def _symbol(value: float, step: float, rounding: float) -> int:
    return int(math.copysign(math.floor(abs(value) / step + rounding), value))
