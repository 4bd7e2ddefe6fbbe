"""Transform coding of one feature: components on axes of their own, one uniform step for all, integer tables.

The rotation (and a spatial transform, where there is one) is folded into head and tail: this codec sees final
coefficients, so that everything here is exact. Symbols are q = sign(x) floor(|x| / step + rounding), two float32
operations that IEEE 754 fixes: the same coefficients give the same bytes on every processor. Each component of each
rate points to one of at most 255 shared tables; symbols of one table are coded in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.entropy import MAX_SYMBOL, FrequencyTables, Run
from edgekit.runtimes.codecs.tables import array, read_tables, setting

KIND = "transform"
DROPPED = 255  # a table index: the component is not sent and reads as zero
BUCKETS = 3  # reconstruction knows symbols -3 or less, -2, .., 2, 3 or more apart


@dataclass(frozen=True)
class Layout:
    """Which components a rate sends, in the order of their tables: `order` [kept], `tables` [kept], and its step."""

    step: np.float32
    order: np.ndarray
    tables: np.ndarray

    def runs(self, width: int) -> list[Run]:
        """Each component has `width` symbols."""
        used, counts = np.unique(self.tables, return_counts=True)
        return [(int(table), int(count) * width) for table, count in zip(used, counts, strict=True)]


class TransformCodec(Codec):
    """One float32 feature [B, C, ...] or [B, ..., C]. A component is a channel, or a channel at a position.

    A ladder may end before its tables do.

    Tables: settings `channel_axis`, `per_position`, `rounding`; arrays `steps` float32 [rates], `index` uint8 [rates,
    components], `frequencies`, `radii` (see entropy.FrequencyTables) and `offsets` float32 [tables, 7], which a
    reconstruction adds to its symbol, in steps.
    """

    def _load(self, tables: bytes | None) -> None:
        settings, arrays = read_tables(tables, KIND)
        if len(self.features) != 1 or self.features[0].dtype != "float32" or len(self.features[0].shape) < 2:
            raise CodecError("a transform codec carries one float32 feature of two dimensions or more")
        self.axis = setting(settings, "channel_axis", int, 1, len(self.features[0].shape) - 1)
        self.per_position = setting(settings, "per_position", bool, 0, 1)
        self.rounding = np.float32(setting(settings, "rounding", float, 0.0, 0.5))
        self.tables = FrequencyTables(
            array(arrays, "frequencies", "<u2", (None,)), array(arrays, "radii", "|u1", (None,))
        )
        steps = array(arrays, "steps", "<f4", (None,))
        if not 1 <= self.rates <= len(steps):
            raise CodecError(f"{self.rates} rates, allowed 1 to {len(steps)}")
        self.index = array(arrays, "index", "|u1", (len(steps), None))
        self.offsets = array(arrays, "offsets", "<f4", (len(self.tables), 2 * BUCKETS + 1))
        if not (steps > 1e-20).all() or not (steps < 1e20).all():
            raise CodecError(f"steps {steps.tolist()}, allowed above zero")
        if ((self.index >= len(self.tables)) & (self.index != DROPPED)).any():
            raise CodecError(f"a table index of {self.index.max()}, allowed below {len(self.tables)}")
        self.conditionals: dict[tuple[int, int, int, int], Any] = {}  # of refinement.py
        self.layouts = [self._layout(step, index) for step, index in zip(steps, self.index, strict=True)]

    @staticmethod
    def _layout(step: np.float32, index: np.ndarray) -> Layout:
        order = np.argsort(index, kind="stable")
        order = order[index[order] != DROPPED]
        return Layout(step, order, index[order])

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        symbols, width = self.quantize(arrays[0], rate)
        return self.tables.encode(symbols.ravel(), self.layouts[rate].runs(width))

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        symbols = self.symbols(payload, shapes[0], rate)
        return [self.reconstruct(symbols, shapes[0], rate)]

    def quantize(self, feature: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
        """Symbols int32 [kept, width] of a rate, in its layout's order, and the width."""
        layout = self.layouts[rate]
        rows = self._rows(feature)[layout.order]
        with np.errstate(over="ignore"):
            scaled = rows / layout.step
        magnitude = np.abs(scaled)
        magnitude += self.rounding
        # Written so that NaN fails too; what is not sent is checked as well.
        if not (magnitude.max(initial=0) <= MAX_SYMBOL) or not np.isfinite(feature).all():
            largest = float(np.abs(feature).max())
            raise CodecError(
                f"a coefficient of magnitude {largest:.4g}, allowed finite and below {MAX_SYMBOL * layout.step:.4g}",
                hint="the head gave numbers far outside its calibration",
            )
        return np.copysign(np.floor(magnitude), scaled).astype(np.int32).reshape(len(rows), -1), rows[0:1].size

    def symbols(self, payload: bytes, shape: tuple[int, ...], rate: int) -> np.ndarray:
        """What `quantize` gave: int32 [kept, width]. Raises CodecError."""
        layout, width = self.layouts[rate], self._width(shape)
        return self.tables.decode(payload, layout.runs(width)).reshape(len(layout.order), width)

    def reconstruct(self, symbols: np.ndarray, shape: tuple[int, ...], rate: int) -> np.ndarray:
        """float32 of `shape` from symbols int32 [kept, width]."""
        layout = self.layouts[rate]
        bucket = np.clip(symbols, -BUCKETS, BUCKETS) + np.int32(BUCKETS)
        bucket += (layout.tables.astype(np.int32) * (2 * BUCKETS + 1))[:, None]
        values = self.offsets.ravel()[bucket]
        values += symbols
        values *= layout.step
        moved = self._moved(shape)
        rows = np.zeros(self._row_shape(moved), np.float32)
        rows[layout.order] = values.reshape(len(values), *rows.shape[1:])
        if self.per_position:
            feature = rows.T.reshape(moved)
        else:
            feature = rows.transpose(1, 0, 2).reshape(moved)
        return np.ascontiguousarray(np.moveaxis(feature, 1, self.axis))

    def _moved(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape with its channels second. Raises CodecError where the components are not the tables'."""
        moved = (shape[0], shape[self.axis], *(size for at, size in enumerate(shape) if at not in (0, self.axis)))
        components = int(np.prod(moved[1:])) if self.per_position else moved[1]
        if components != self.index.shape[1]:
            raise CodecError(f"{components} components in {list(shape)}, allowed {self.index.shape[1]}")
        return moved

    def _row_shape(self, moved: tuple[int, ...]) -> tuple[int, ...]:
        positions = int(np.prod(moved[2:]))
        return (moved[1] * positions, moved[0]) if self.per_position else (moved[1], moved[0], positions)

    def _width(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(self._row_shape(self._moved(shape))[1:]))

    def _rows(self, feature: np.ndarray) -> np.ndarray:
        """A view with the components first: [components, B] or [C, B, positions]."""
        moved = self._moved(feature.shape)
        first = np.moveaxis(feature, self.axis, 1)
        if self.per_position:
            return first.reshape(moved[0], int(np.prod(moved[1:]))).T
        return first.reshape(moved[0], moved[1], int(np.prod(moved[2:]))).transpose(1, 0, 2)
