"""Residual vector quantization: groups of columns at a position become indices of codebooks, stage after stage.

Each stage codes what the stages before it left over (Juang and Gray, ICASSP 1982); groups have codebooks of their own
(Jegou, Douze and Schmid, IEEE TPAMI 33(1), 2011). A feature is first rounded to integers, codewords and penalties are
integers, and the search's float64 products stay below 2^53, where they are exact in any order: the same indices on
every processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.entropy import TABLE_TOTAL, decode_indices, encode_indices, exact_model
from edgekit.runtimes.codecs.tables import Arrays, array, read_tables

KIND = "vector"
LARGEST = 32767  # of a rounded column and of a codeword's entries
MAX_STAGES, MAX_WIDTH, MAX_CODEWORDS = 64, 256, 4096


@dataclass(frozen=True)
class VectorTables:
    """Of one feature. `codewords` int16 [groups, stages, K, d] in steps; `penalties` uint32 [groups, stages, K]: added
    to squared distances, in squared steps; `frequencies` uint16 [groups, stages, K], each row's sum 2^16.

    `units` uint8 [groups stages, 2]: (group, stage), the most gainful first, the stages of a group in order; `kept`
    uint16 [rates]: how many of them each rate sends. A column is `step` times its integer.
    """

    codewords: np.ndarray
    penalties: np.ndarray
    frequencies: np.ndarray
    units: np.ndarray
    kept: np.ndarray
    step: float

    def arrays(self, feature: int) -> Arrays:
        """For `write_tables`: the names end in the feature's number."""
        return {
            f"codewords{feature}": self.codewords.astype(np.int16),
            f"penalties{feature}": self.penalties.astype(np.uint32),
            f"frequencies{feature}": self.frequencies.astype(np.uint16),
            f"units{feature}": self.units.astype(np.uint8),
            f"kept{feature}": self.kept.astype(np.uint16),
            f"step{feature}": np.array([self.step], np.float32),
        }

    @classmethod
    def read(cls, arrays: Arrays, feature: int, rates: int) -> VectorTables:
        """Raises CodecError for tables that do not fit, or of fewer than `rates` rates."""
        codewords = array(arrays, f"codewords{feature}", "<i2", (None, None, None, None))
        groups, stages, count, width = codewords.shape
        if not (groups and 1 <= stages <= MAX_STAGES and 2 <= count <= MAX_CODEWORDS and 1 <= width <= MAX_WIDTH):
            raise CodecError(f"codewords of shape {list(codewords.shape)} do not fit")
        penalties = array(arrays, f"penalties{feature}", "<u4", (groups, stages, count))
        frequencies = array(arrays, f"frequencies{feature}", "<u2", (groups, stages, count)).astype(np.int64)
        if (frequencies < 1).any() or (frequencies.sum(2) != TABLE_TOTAL).any():
            raise CodecError(f"frequencies below 1 or with a sum other than {TABLE_TOTAL}")
        units = array(arrays, f"units{feature}", "|u1", (groups * stages, 2)).astype(np.int64)
        depth = [0] * groups
        for group, stage in units.tolist():
            if group >= groups or stage != depth[group]:
                raise CodecError(f"unit {group}, {stage} is out of order")
            depth[group] += 1
        kept = array(arrays, f"kept{feature}", "<u2", (None,)).astype(np.int64)
        if not 1 <= rates <= len(kept) or (kept < 1).any() or (kept > len(units)).any():
            raise CodecError(f"rates that keep {kept.tolist()} units for {rates} rates, allowed 1 to {len(units)}")
        step = float(array(arrays, f"step{feature}", "<f4", (1,))[0])
        if not 1e-20 < step < 1e20:
            raise CodecError(f"a step of {step}, allowed above zero")
        return cls(codewords, penalties, frequencies, units, kept, step)


class _Feature:
    """One feature's tables made ready: [..., groups d] columns last."""

    def __init__(self, tables: VectorTables) -> None:
        self.tables = tables
        self.groups, self.stages, _, self.width = tables.codewords.shape
        self.words = tables.codewords.astype(np.float64)
        self.offsets = (self.words**2).sum(3) + tables.penalties
        self.models = [[exact_model(row << 8) for row in stages] for stages in tables.frequencies]

    def units(self, rate: int) -> list[tuple[int, int]]:
        return [(group, stage) for group, stage in self.tables.units[: self.tables.kept[rate]].tolist()]

    def coding(self, rate: int, points: int) -> tuple[list[Any], np.ndarray]:
        models = [self.models[group][stage] for group, stage in self.units(rate)]
        return models, np.full(len(models), points, np.int64)

    def points(self, shape: tuple[int, ...]) -> int:
        columns = self.groups * self.width
        if shape[-1] != columns:
            raise CodecError(f"{shape[-1]} columns in {list(shape)}, allowed {columns}")
        return math.prod(shape) // columns

    def quantize(self, feature: np.ndarray, rate: int) -> np.ndarray:
        """int32 [units sent, points]."""
        if not np.isfinite(feature).all():
            raise CodecError("a feature that is not finite")
        points = self.points(feature.shape)
        with np.errstate(over="ignore"):
            columns = np.clip(np.rint(feature / np.float32(self.tables.step)), -LARGEST, LARGEST)
        left = columns.reshape(points, self.groups, self.width).transpose(1, 0, 2).astype(np.float64)
        units = self.units(rate)
        indices = np.empty((len(units), points), np.int32)
        for found, (group, stage) in zip(indices, units, strict=True):
            words = self.words[group, stage]
            found[:] = (self.offsets[group, stage] - 2 * (left[group] @ words.T)).argmin(1)
            left[group] -= words[found]
        return indices

    def reconstruct(self, indices: np.ndarray, shape: tuple[int, ...], rate: int) -> np.ndarray:
        """float32 of `shape` from int32 [units sent, points]."""
        sums = np.zeros((self.groups, indices.shape[1], self.width), np.int32)
        for found, (group, stage) in zip(indices, self.units(rate), strict=True):
            sums[group] += self.tables.codewords[group, stage][found]
        values: np.ndarray = sums.transpose(1, 0, 2).reshape(shape).astype(np.float32) * np.float32(self.tables.step)
        return values


class VectorCodec(Codec):
    """Float32 features [B, ..., columns], each with tables of its own. A rate sends the first units of each."""

    def _load(self, tables: bytes | None) -> None:
        _, arrays = read_tables(tables, KIND)
        if any(spec.dtype != "float32" or len(spec.shape) < 2 for spec in self.features):
            raise CodecError("a vector codec carries float32 features of two dimensions or more")
        self.own = [_Feature(VectorTables.read(arrays, at, self.rates)) for at in range(len(self.features))]

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        parts, models, counts = [], [], []
        for own, values in zip(self.own, arrays, strict=True):
            parts.append(own.quantize(values, rate).ravel())
            some, number = own.coding(rate, own.points(values.shape))
            models += some
            counts.append(number)
        return encode_indices(np.concatenate(parts), models, np.concatenate(counts))

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        coding = [own.coding(rate, own.points(shape)) for own, shape in zip(self.own, shapes, strict=True)]
        models = [model for some, _ in coding for model in some]
        indices = decode_indices(payload, models, np.concatenate([counts for _, counts in coding]))
        decoded, start = [], 0
        for own, shape, (some, counts) in zip(self.own, shapes, coding, strict=True):
            end = start + int(counts.sum())
            part = indices[start:end].reshape(len(some), -1 if counts.sum() else 0)
            decoded.append(own.reconstruct(part, shape, rate))
            start = end
        return decoded
