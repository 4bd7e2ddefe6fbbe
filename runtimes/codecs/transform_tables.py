"""Build side of the transform codec: calibration coefficients and steps -> tables shared by all rates.

Each (rate, component) has a histogram of symbols; histograms that look alike share a table. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.clustering import cluster_histograms
from edgekit.runtimes.codecs.entropy import MAX_RADIUS, integer_table
from edgekit.runtimes.codecs.tables import write_tables
from edgekit.runtimes.codecs.transform import BUCKETS, DROPPED, KIND

CLUSTER_RADIUS = 20  # symbols beyond it are one bucket to the clustering
ESCAPED_SHARE = 2.0**-13  # a table ends where less than this lies beyond


def fit_transform_tables(
    components: np.ndarray,
    steps: Sequence[float],
    channel_axis: int = 1,
    per_position: bool = False,
    *,
    rounding: float = 0.5,
    kept: Sequence[int] | None = None,
    classes: int = 48,
) -> bytes:
    """Tables of a TransformCodec with one rate per step.

    `components`: float [N, C, ...] or [N, ..., C], calibration coefficients, channels at `channel_axis` ordered by
    importance. `steps`: finest first. `per_position`: statistics for each channel at each position (a spatial
    transform was folded in), else for each channel. `rounding`: 0.5 rounds to nearest; less widens the zero bin, which
    saves bits at low rates. `kept`: for each rate, the number of leading channels that are sent (default: all).
    Raises CodecError for steps out of order, or coefficients that are not finite.
    """
    components = np.moveaxis(np.asarray(components, np.float32), channel_axis, 1)
    if list(steps) != sorted(set(steps)) or not steps or steps[0] <= 0:
        raise CodecError(f"steps {list(steps)}, allowed above zero and ascending: the finest rate comes first")
    if not np.isfinite(components).all() or len(components) == 0:
        raise CodecError("the calibration coefficients are none, or not finite")
    samples, channels = components.shape[:2]
    positions = int(np.prod(components.shape[2:]))
    if per_position:
        rows = np.ascontiguousarray(components.reshape(samples, channels * positions).T)
    else:
        flat = components.reshape(samples, channels, positions)
        rows = np.ascontiguousarray(flat.transpose(1, 0, 2)).reshape(channels, samples * positions)
    sent = _sent(kept, len(steps), channels, positions if per_position else 1)
    index = _cluster(rows, steps, rounding, sent, classes)
    frequencies, radii, offsets = _tables(rows, steps, rounding, index)
    return write_tables(
        KIND,
        {"channel_axis": int(channel_axis), "per_position": bool(per_position), "rounding": float(rounding)},
        {
            "steps": np.asarray(steps, np.float32),
            "index": index,
            "frequencies": frequencies,
            "radii": radii,
            "offsets": offsets,
        },
    )


def _sent(kept: Sequence[int] | None, rates: int, channels: int, repeat: int) -> np.ndarray:
    """bool [rates, components]."""
    numbers = np.full(rates, channels) if kept is None else np.asarray(kept)
    if len(numbers) != rates or (numbers < 1).any() or (numbers > channels).any():
        raise CodecError(f"kept {list(numbers)}, allowed {rates} numbers from 1 to {channels}")
    return np.repeat(np.arange(channels)[None] < numbers[:, None], repeat, axis=1)


def _quantized(rows: np.ndarray, steps: Sequence[float], rounding: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step: symbols int32, as TransformCodec finds them, and what they leave over, in steps."""
    for step in steps:
        scaled = rows / np.float32(step)
        symbols = np.copysign(np.floor(np.abs(scaled) + np.float32(rounding)), scaled)
        yield symbols.astype(np.int32), scaled - symbols


def _cluster(rows: np.ndarray, steps: Sequence[float], rounding: float, sent: np.ndarray, classes: int) -> np.ndarray:
    """uint8 [rates, components]: the class of each, DROPPED where it is not sent. Classes are numbered without gaps."""
    bins = 2 * CLUSTER_RADIUS + 3
    histograms = np.empty((len(steps), len(rows), bins), np.float32)
    base = (np.arange(len(rows)) * bins + CLUSTER_RADIUS + 1)[:, None]
    for rate, (symbols, _) in enumerate(_quantized(rows, steps, rounding)):
        places = np.clip(symbols, -CLUSTER_RADIUS - 1, CLUSTER_RADIUS + 1) + base
        histograms[rate] = np.bincount(places.ravel(), minlength=len(rows) * bins).reshape(len(rows), bins)
    flat = histograms[sent]
    label = cluster_histograms(flat, CLUSTER_RADIUS + 1, classes)
    index = np.full(sent.shape, DROPPED, np.uint8)
    index[sent] = label
    return index


def _tables(
    rows: np.ndarray, steps: Sequence[float], rounding: float, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies uint16, radii uint8 [classes] and offsets float32 [classes, 7]."""
    classes = int(index[index != DROPPED].max()) + 1
    bins, buckets = 2 * MAX_RADIUS + 3, 2 * BUCKETS + 1
    counts, seen, left = np.zeros(classes * bins), np.zeros(classes * buckets), np.zeros(classes * buckets)
    for rate, (symbols, rest) in enumerate(_quantized(rows, steps, rounding)):
        keep = index[rate] != DROPPED
        label = index[rate][keep].astype(np.int64)[:, None]
        symbols, rest = symbols[keep], rest[keep]
        places = (np.clip(symbols, -MAX_RADIUS - 1, MAX_RADIUS + 1) + MAX_RADIUS + 1 + label * bins).ravel()
        counts += np.bincount(places, minlength=classes * bins)
        places = (np.clip(symbols, -BUCKETS, BUCKETS) + BUCKETS + label * buckets).ravel()
        seen += np.bincount(places, minlength=classes * buckets)
        left += np.bincount(places, rest.ravel(), minlength=classes * buckets)
    # A bucket seen once says little: pull it to the middle of its bin.
    offsets = (left / (seen + 4)).reshape(classes, buckets).astype(np.float32)
    rows_of = [_row(count) for count in counts.reshape(classes, bins)]
    radii = np.array([len(row) // 2 - 1 for row in rows_of], np.uint8)
    return np.concatenate(rows_of).astype(np.uint16), radii, offsets


def _row(counts: np.ndarray) -> np.ndarray:
    """The table of one class from counts of -256 .. 256: int64 [2 m + 2]."""
    middle = MAX_RADIUS + 1
    total = counts.sum()
    inside = counts[middle] + np.concatenate([[0], np.cumsum(counts[middle + 1 : -1] + counts[middle - 1 : 0 : -1])])
    radius = int(np.argmax(inside >= min(total * (1 - ESCAPED_SHARE), inside[-1])))
    row = counts[middle - radius : middle + radius + 1]
    return integer_table(np.append(row + 0.1, total - row.sum() + 0.1))
