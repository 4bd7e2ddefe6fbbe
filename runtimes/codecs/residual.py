"""Residual product codebooks with a ladder of units, integers throughout: what the vector bottleneck puts on the wire.

A feature is [batch, positions, groups x width]. At each position every group of columns is coded by stages: a codeword,
then one for what is left, and so on. A unit is one stage of one group; the tables list the units by what they gain for
a bit, and a rate sends the first so many. Columns are rounded to `step`; products of such integers are exact in float64
whatever the order of summation, so that every processor finds the same codewords. A codeword's distance is raised by
the price of its bits, the penalty (entropy-constrained: Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37(1), 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import MAX_ELEMENTS, Codec
from edgekit.runtimes.codecs.entropy import (
    TABLE_BITS,
    TABLE_TOTAL,
    decode_indices,
    encode_indices,
)
from edgekit.runtimes.codecs.range_coder import PRECISION, exact_model
from edgekit.runtimes.codecs.tables import array, read_tables
from edgekit.tensors import TensorSpec

KIND = "residual"
LARGEST = (1 << 15) - 1  # of a rounded column and of a codeword's entry
MAX_STAGES, MAX_WIDTH, MAX_CODEWORDS = 32, 256, 4096


@dataclass(frozen=True)
class ResidualTables:
    """The tables of one feature; `check` says what they have to be.

    `codewords`: int16 [G, S, K, d] in units of `step`; `penalties`: uint32 [G, S, K] in units of step squared;
    `frequencies`: uint16 [G, S, K] of sum 2^16; `units`: uint8 [G S, 2], pairs (group, stage); `kept`: uint16 [rates].
    """

    codewords: np.ndarray
    penalties: np.ndarray
    frequencies: np.ndarray
    units: np.ndarray
    kept: np.ndarray
    step: float

    @classmethod
    def read(cls, arrays: dict[str, np.ndarray], feature: int, rates: int) -> ResidualTables:
        """Raises CodecError for arrays that are missing or do not fit each other."""
        codewords = array(arrays, f"{feature}.codewords", "<i2", (None, None, None, None))
        groups, stages, count, _ = codewords.shape
        tables = cls(
            codewords,
            array(arrays, f"{feature}.penalties", "<u4", (groups, stages, count)),
            array(arrays, f"{feature}.frequencies", "<u2", (groups, stages, count)),
            array(arrays, f"{feature}.units", "|u1", (groups * stages, 2)),
            array(arrays, f"{feature}.kept", "<u2", (None,)),
            float(array(arrays, f"{feature}.step", "<f4", (1,))[0]),
        )
        tables.check()
        if not 1 <= rates <= len(tables.kept):
            raise CodecError(f"{rates} rates, allowed 1 to {len(tables.kept)}")
        return tables

    def arrays(self, feature: int) -> dict[str, np.ndarray]:
        """For `write_tables`."""
        return {
            f"{feature}.codewords": self.codewords,
            f"{feature}.penalties": self.penalties,
            f"{feature}.frequencies": self.frequencies,
            f"{feature}.units": self.units,
            f"{feature}.kept": self.kept,
            f"{feature}.step": np.array([self.step], np.float32),
        }

    def check(self) -> None:
        groups, stages, count, width = self.codewords.shape
        if not (groups >= 1 and 1 <= stages <= MAX_STAGES and 2 <= count <= MAX_CODEWORDS and 1 <= width <= MAX_WIDTH):
            raise CodecError(
                f"codewords of shape {list(self.codewords.shape)}, allowed at most {MAX_STAGES} stages of "
                f"{MAX_CODEWORDS} codewords of {MAX_WIDTH} columns"
            )
        if (np.abs(self.codewords.astype(np.int32)) > LARGEST).any():
            raise CodecError(f"a codeword beyond {LARGEST}")
        frequencies = self.frequencies.astype(np.int64)
        if (frequencies < 1).any() or (frequencies.sum(-1) != TABLE_TOTAL).any():
            raise CodecError(f"frequencies below 1 or with a sum other than {TABLE_TOTAL}")
        if not self.step > 0:
            raise CodecError(f"a step of {self.step}, allowed above zero")
        depth = [0] * groups
        for group, stage in self.units.tolist():
            if group >= groups or stage != depth[group]:
                raise CodecError(f"unit ({group}, {stage}) out of order")
            depth[group] += 1
        kept = self.kept.astype(np.int64)
        if len(kept) == 0 or (kept < 1).any() or (kept > len(self.units)).any() or (np.diff(kept) > 0).any():
            raise CodecError(f"rates keep {kept.tolist()} units, allowed 1 to {len(self.units)}, finest first")


class FeatureCoder:
    """One feature's rows [n, G d] to indices and back. Made from checked tables."""

    def __init__(self, tables: ResidualTables) -> None:
        self.tables = tables
        self.groups, self.stages, self.count, self.width = tables.codewords.shape
        exact = tables.codewords.astype(np.float64)
        # [S, G, d, K] and [S, G, 1, K]: the terms of |c|^2 + penalty - 2 r c, each an integer below 2^53.
        self._products = np.ascontiguousarray(-2 * exact.transpose(1, 0, 3, 2))
        self._squares = (np.square(exact).sum(-1) + tables.penalties).transpose(1, 0, 2)[:, :, None, :]
        self._exact = np.ascontiguousarray(exact.transpose(1, 0, 2, 3))
        self._wide = tables.codewords.astype(np.int32)

    def kept(self, rate: int) -> int:
        return int(self.tables.kept[rate])

    @cached_property
    def models(self) -> list[Any]:
        """By unit, in order."""
        frequencies = self.tables.frequencies.astype(np.int64) << (PRECISION - TABLE_BITS)
        return [exact_model(frequencies[group, stage]) for group, stage in self.tables.units.tolist()]

    def encode(self, rows: np.ndarray, rate: int) -> np.ndarray:
        """float32 [n, G d] -> int32 [units kept, n]. Raises CodecError for what is not finite."""
        rounded = np.rint(rows / np.float32(self.tables.step))
        if not np.isfinite(rounded).all():
            raise CodecError("a feature holds NaN or infinity", hint="check the head's input")
        rest = np.clip(rounded, -LARGEST, LARGEST).astype(np.float64)
        rest = np.ascontiguousarray(rest.reshape(-1, self.groups, self.width).transpose(1, 0, 2))
        units = self.tables.units[: self.kept(rate)]
        depth = np.bincount(units[:, 0], minlength=self.groups)
        found = np.zeros((int(depth.max()), self.groups, rest.shape[1]), np.int32)
        for stage in range(len(found)):
            deep = np.flatnonzero(depth > stage)
            part = rest if len(deep) == self.groups else rest[deep]
            scores = part @ self._products[stage, deep]
            scores += self._squares[stage, deep]
            best = scores.argmin(-1)
            found[stage, deep] = best
            rest[deep] = part - self._exact[stage, deep[:, None], best]
        chosen: np.ndarray = found[units[:, 1], units[:, 0]]
        return chosen

    def decode(self, indices: np.ndarray, rate: int) -> np.ndarray:
        """int32 [units kept, n] -> float32 [n, G d]."""
        sums = np.zeros((self.groups, indices.shape[1], self.width), np.int32)
        for (group, stage), chosen in zip(self.tables.units[: self.kept(rate)].tolist(), indices, strict=True):
            sums[group] += self._wide[group, stage][chosen]
        rows = sums.transpose(1, 0, 2).reshape(indices.shape[1], self.groups * self.width)
        values: np.ndarray = rows.astype(np.float32)
        return values * np.float32(self.tables.step)


class ResidualCodec(Codec):
    """Float32 features [batch, ..., columns], each with its own tables; a rate may keep another share of each."""

    def _load(self, tables: bytes | None) -> None:
        _, arrays = read_tables(tables, KIND)
        if len(arrays) != 6 * len(self.features):
            raise CodecError(f"{len(arrays)} arrays, allowed 6 for each of {len(self.features)} features")
        self._coders = []
        for index, spec in enumerate(self.features):
            coder = FeatureCoder(ResidualTables.read(arrays, index, self.rates))
            check_feature(spec, coder.groups * coder.width)
            self._coders.append(coder)

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        rows = [values.reshape(-1, values.shape[-1]) for values in arrays]
        models, counts = self._coding([len(values) for values in rows], rate)
        parts = [coder.encode(values, rate).reshape(-1) for coder, values in zip(self._coders, rows, strict=True)]
        return encode_indices(np.concatenate(parts), models, counts)

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        found = self.decode_indices(payload, [int(np.prod(shape[:-1])) for shape in shapes], rate)
        return [
            coder.decode(indices, rate).reshape(shape)
            for coder, indices, shape in zip(self._coders, found, shapes, strict=True)
        ]

    def decode_indices(self, payload: bytes, rows: Sequence[int], rate: int) -> list[np.ndarray]:
        """By feature of `rows` vectors: int32 [units kept, rows], for who reads values of its own by them.

        Raises CodecError.
        """
        self.check_rate(rate)
        indices = decode_indices(payload, *self._coding(rows, rate))
        sizes = [coder.kept(rate) * count for coder, count in zip(self._coders, rows, strict=True)]
        parts = np.split(indices, np.cumsum(sizes)[:-1])
        return [part.reshape(coder.kept(rate), -1) for coder, part in zip(self._coders, parts, strict=True)]

    def _coding(self, rows: Sequence[int], rate: int) -> tuple[list[Any], np.ndarray]:
        """The model and the number of indices of each run. Raises CodecError for more than a feature's elements."""
        models, counts = [], []
        for coder, count in zip(self._coders, rows, strict=True):
            kept = coder.kept(rate)
            if kept * count > MAX_ELEMENTS:
                raise CodecError(f"{kept} units at {count} places, allowed {MAX_ELEMENTS} in all")
            models += coder.models[:kept]
            counts += [count] * kept
        return models, np.array(counts, np.int64)


def check_feature(spec: TensorSpec, columns: int) -> None:
    """Raises CodecError for a feature that is not float32 [..., columns]."""
    if spec.dtype != "float32" or len(spec.shape) < 2 or spec.shape[-1] != columns:
        raise CodecError(
            f"feature {spec.name!r} is {spec.dtype} {list(spec.shape)}, allowed float32 [..., {columns}]",
            hint="the tables belong to another head",
        )
