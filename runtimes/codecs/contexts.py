"""Which table codes a symbol: by its component's class, and by how busy its place is in the components before it.

Channels come in blocks of doubling size. A place's activity is the sum of the magnitudes of the blocks before, there
and (1, 2, 1)-weighted around it; thresholds turn it into a bin, and class and bin name the table. The receiver knows
all of that when a block begins, so that a block is coded in one pass. All in integers.
(Backward adaptation by magnitude: as in the context modelling of CALIC, Wu and Memon, IEEE Trans. Commun. 45(4), 1997.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.entropy import FrequencyTables, Run, RunDecoder

FIRST_BLOCK = 2


def block_bounds(channels: int) -> list[tuple[int, int]]:
    """Channels of each block: 0-1, 2-3, 4-7, 8-15 ..."""
    bounds, low, high = [], 0, FIRST_BLOCK
    while low < channels:
        bounds.append((low, min(high, channels)))
        low, high = high, 2 * high
    return bounds


def smoothed(activity: np.ndarray, places: tuple[int, ...]) -> np.ndarray:
    """Integers [B, positions] -> the same, summed with weights 1, 2, 1 along each axis of `places`, edges repeated."""
    values = activity.reshape(len(activity), *places)
    for axis, size in enumerate(places, 1):
        if size > 1:
            ahead = np.concatenate([values.take(range(1, size), axis), values.take([-1], axis)], axis)
            behind = np.concatenate([values.take([0], axis), values.take(range(size - 1), axis)], axis)
            values = 2 * values + ahead + behind
        else:
            values = 4 * values
    summed: np.ndarray = values.reshape(activity.shape)
    return summed


@dataclass(frozen=True)
class Contexts:
    """`thresholds` int32 [blocks - 1, bins - 1], ascending; `choices` uint8 [classes, bins + 1]: the table of a class
    in a bin, last where nothing came before. `classes` uint8 [channels, positions or 1] of the components sent."""

    tables: FrequencyTables
    thresholds: np.ndarray
    choices: np.ndarray
    classes: np.ndarray

    def encode(self, symbols: np.ndarray, places: tuple[int, ...]) -> bytes:
        """int32 [channels, B, positions] -> bytes."""
        return self.tables.encode(*self.ordered(symbols, places))

    def ordered(self, symbols: np.ndarray, places: tuple[int, ...]) -> tuple[np.ndarray, list[Run]]:
        """int32 [n] in the order in which they are coded, and the runs of one table."""
        parts: list[np.ndarray] = [np.empty(0, np.int32)]
        runs: list[Run] = []
        activity = np.zeros(symbols.shape[1:], np.int64)
        for block, (low, high) in enumerate(block_bounds(len(symbols))):
            part = symbols[low:high]
            chosen = self._chosen(block, low, high, activity, places)
            order, some = _sorted(chosen)
            parts.append(part.ravel()[order])
            runs += some
            activity += np.minimum(np.abs(part), self.tables.radii[chosen] + 1).sum(0)
        return np.concatenate(parts), runs

    def decode(self, payload: bytes, batch: int, places: tuple[int, ...]) -> np.ndarray:
        """The reverse. Raises CodecError for bytes that `encode` does not write."""
        positions = int(np.prod(places))
        decoder, ends = RunDecoder(self.tables, payload), []
        activity = np.zeros((batch, positions), np.int64)
        for block, (low, high) in enumerate(block_bounds(len(self.classes))):
            chosen = self._chosen(block, low, high, activity, places)
            order, some = _sorted(chosen)
            magnitudes = np.empty(chosen.size, np.int64)
            magnitudes[order] = decoder.take(some)
            activity += magnitudes.reshape(chosen.shape).sum(0)
            ends.append((low, high, order))
        found, symbols, start = decoder.finish(), np.empty((len(self.classes), batch, positions), np.int32), 0
        for low, high, order in ends:
            part = np.empty(len(order), np.int32)
            part[order] = found[start : start + len(order)]
            symbols[low:high] = part.reshape(high - low, batch, positions)
            start += len(order)
        return symbols

    def _chosen(self, block: int, low: int, high: int, activity: np.ndarray, places: tuple[int, ...]) -> np.ndarray:
        """The table of each symbol of a block: uint8 [channels, B, positions]."""
        classes = self.classes[low:high, None, :]
        if block == 0:
            column = self.choices[:, -1][classes]
            return np.broadcast_to(column, (high - low, *activity.shape))
        bins = self.thresholds[block - 1].searchsorted(smoothed(activity, places), side="right")
        chosen: np.ndarray = self.choices[classes, bins[None]]
        return chosen


def _sorted(chosen: np.ndarray) -> tuple[np.ndarray, Sequence[Run]]:
    """The order that brings symbols of one table together, and its runs."""
    flat = chosen.ravel()
    counts = np.bincount(flat)
    used = np.flatnonzero(counts)
    return flat.argsort(kind="stable"), list(zip(used.tolist(), counts[used].tolist(), strict=True))


def check_contexts(thresholds: np.ndarray, choices: np.ndarray, classes: np.ndarray, tables: int) -> None:
    """Raises CodecError for arrays that do not fit each other; `classes` of every rate, without what is dropped."""
    if (np.diff(thresholds.astype(np.int64), axis=-1) < 0).any() or thresholds.shape[-1] + 2 != choices.shape[1]:
        raise CodecError(f"thresholds of shape {list(thresholds.shape)} that do not ascend or fit the choices")
    if (choices >= tables).any() or (classes >= len(choices)).any():
        raise CodecError(f"a table or class beyond {tables} and {len(choices)}")
