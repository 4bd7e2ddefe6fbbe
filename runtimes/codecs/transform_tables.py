"""Build side of the transform codec: calibration coefficients and steps -> tables shared by all rates.

Each (rate, component) has a histogram of symbols; those that look alike are a class. Each class in each bin of activity
(see contexts.Contexts) has one again, and those that look alike share a table. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.clustering import cluster_histograms
from edgekit.runtimes.codecs.contexts import block_bounds, smoothed
from edgekit.runtimes.codecs.entropy import MAX_RADIUS, integer_table
from edgekit.runtimes.codecs.tables import write_tables
from edgekit.runtimes.codecs.transform import BUCKETS, DROPPED, KIND

CLUSTER_RADIUS = 20  # symbols beyond it are one bucket to the clustering
BINS = 8
STATIC_WEIGHT = 50  # symbols of the class as a whole that stand beside those of each bin
TAIL_SAMPLES = 6  # so many of N samples a tail weighs: few samples say little about the next one
TAIL_COUNT = 20  # and so many symbols
TAIL_WIDTH, TAIL_LEAST = 4, 0.15  # times the mean magnitude, and added to it
ESCAPED_SHARE = 2.0**-14  # a table ends where less than this lies beyond


def fit_transform_tables(
    components: np.ndarray,
    steps: Sequence[float],
    channel_axis: int = 1,
    per_position: bool = False,
    *,
    rounding: float = 0.5,
    kept: Sequence[int] | None = None,
    classes: int = 20,
    tables: int = 24,
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
    samples, channels, *places = components.shape
    positions = math.prod(places)
    values = np.ascontiguousarray(components.reshape(samples, channels, positions).transpose(1, 0, 2))
    repeat = positions if per_position else 1
    rows = values.transpose(0, 2, 1).reshape(channels * positions, samples) if per_position else values
    sent = _sent(kept, len(steps), channels, repeat)
    index = _classes(rows.reshape(channels * repeat, -1), steps, rounding, sent, classes)
    statistics = _statistics(values, steps, rounding, index.reshape(len(steps), channels, repeat), tuple(places))
    choices, frequencies, radii = _tables(statistics.counts, tables, min(TAIL_SAMPLES / samples, 0.1))
    return write_tables(
        KIND,
        {"channel_axis": int(channel_axis), "per_position": bool(per_position), "rounding": float(rounding)},
        {
            "steps": np.asarray(steps, np.float32),
            "index": index,
            "thresholds": statistics.thresholds,
            "choices": choices,
            "frequencies": frequencies,
            "radii": radii,
            "offsets": statistics.offsets,
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


def _classes(rows: np.ndarray, steps: Sequence[float], rounding: float, sent: np.ndarray, classes: int) -> np.ndarray:
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


@dataclass(frozen=True)
class _Statistics:
    """`counts` [classes, BINS + 1, 513]: symbols -256 .. 256 by class and bin, last of the class as a whole."""

    counts: np.ndarray
    thresholds: np.ndarray
    offsets: np.ndarray


def _statistics(
    values: np.ndarray, steps: Sequence[float], rounding: float, index: np.ndarray, places: tuple[int, ...]
) -> _Statistics:
    """`values` [C, N, positions], `index` [rates, C, positions or 1]."""
    classes = int(index[index != DROPPED].max()) + 1
    bins, buckets, middle = 2 * MAX_RADIUS + 3, 2 * BUCKETS + 1, MAX_RADIUS + 1
    counts, seen, left = np.zeros(classes * (BINS + 1) * bins), np.zeros(classes * buckets), np.zeros(classes * buckets)
    thresholds = np.zeros((len(steps), len(block_bounds(len(values))) - 1, BINS - 1), np.int32)
    for rate, (symbols, rest) in enumerate(_quantized(values, steps, rounding)):
        keep = index[rate, :, 0] != DROPPED
        label, symbols = index[rate][keep].astype(np.int64)[:, None, :], symbols[keep]
        bucket = (np.clip(symbols, -BUCKETS, BUCKETS) + BUCKETS + label * buckets).ravel()
        seen += np.bincount(bucket, minlength=classes * buckets)
        left += np.bincount(bucket, rest[keep].ravel(), minlength=classes * buckets)
        symbols = np.clip(symbols, -middle, middle)
        activity = np.zeros(symbols.shape[1:], np.int64)
        for block, (low, high) in enumerate(block_bounds(len(symbols))):
            part, row = symbols[low:high], label[low:high] * (BINS + 1)
            counts += np.bincount(((row + BINS) * bins + part + middle).ravel(), minlength=len(counts))
            if block:
                around = smoothed(activity, places)
                thresholds[rate, block - 1] = _thresholds(around)
                bin = thresholds[rate, block - 1].searchsorted(around, side="right")
                counts += np.bincount(((row + bin) * bins + part + middle).ravel(), minlength=len(counts))
            activity += np.abs(part).sum(0)
    # A bucket seen once says little: pull it to the middle of its bin.
    offsets = (left / (seen + 4)).reshape(classes, buckets).astype(np.float32)
    return _Statistics(counts.reshape(classes, BINS + 1, bins), thresholds, offsets)


def _thresholds(activity: np.ndarray) -> np.ndarray:
    """int32 [BINS - 1] that part `activity` into bins of like size."""
    ranked = np.sort(activity, axis=None)
    return ranked[len(ranked) * np.arange(1, BINS) // BINS].astype(np.int32)


def _tables(counts: np.ndarray, tables: int, tail_share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choices uint8 [classes, BINS + 1], frequencies uint16, radii uint8 [tables]."""
    whole = counts[:, -1:]
    steadied = counts + STATIC_WEIGHT * whole / np.maximum(whole.sum(-1, keepdims=True), 1)
    flat = steadied.reshape(-1, counts.shape[-1])
    middle, reach = MAX_RADIUS + 1, CLUSTER_RADIUS + 1
    short = flat[:, middle - reach : middle + reach + 1].copy()
    short[:, 0] += flat[:, : middle - reach].sum(1)
    short[:, -1] += flat[:, middle + reach + 1 :].sum(1)
    label = cluster_histograms(short.astype(np.float32), reach, tables)
    totals = np.zeros((int(label.max()) + 1, flat.shape[1]))
    np.add.at(totals, label, flat)
    rows = [_row(total, tail_share) for total in totals]
    radii = np.array([len(row) // 2 - 1 for row in rows], np.uint8)
    return label.reshape(counts.shape[:2]).astype(np.uint8), np.concatenate(rows).astype(np.uint16), radii


def _row(counts: np.ndarray, tail_share: float) -> np.ndarray:
    """The table of one class from counts of -256 .. 256: int64 [2 m + 2].

    A share of a wider two-sided geometric distribution is mixed in: calibration sees few of the large symbols that
    others will bring, and an escape costs more than 20 bits.
    """
    middle, total = MAX_RADIUS + 1, counts.sum()
    magnitude = np.abs(np.arange(len(counts)) - middle)
    mean = TAIL_WIDTH * float(counts @ magnitude) / max(total, 1) + TAIL_LEAST
    tail = (mean / (1 + mean)) ** magnitude
    smooth = counts + (tail_share * total + TAIL_COUNT) * tail / tail.sum()
    smooth /= smooth.sum()
    beyond = 1 - smooth[middle] - np.cumsum(smooth[middle + 1 : -1] + smooth[middle - 1 : 0 : -1])
    radius = min(int(np.argmax(np.append(beyond, 0) < ESCAPED_SHARE)) + 1, MAX_RADIUS)
    row = smooth[middle - radius : middle + radius + 1]
    return integer_table(np.append(row, max(1 - row.sum(), 0)))
