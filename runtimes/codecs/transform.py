"""Transform coding of one feature: components on axes of their own, one uniform step for all, integer tables.

The rotation (and a spatial transform, where there is one) is folded into head and tail: this codec sees final
coefficients, so that everything here is exact. Symbols are q = sign(x) floor(|x| / step + rounding), two float32
operations that IEEE 754 fixes: the same coefficients give the same bytes on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.contexts import Contexts, block_bounds, check_contexts
from edgekit.runtimes.codecs.entropy import MAX_SYMBOL, FrequencyTables
from edgekit.runtimes.codecs.tables import array, read_tables, setting

KIND = "transform"
DROPPED = 255  # a class: the channel is not sent and reads as zero
BUCKETS = 3  # reconstruction knows symbols -3 or less, -2, .., 2, 3 or more apart


@dataclass(frozen=True)
class Layout:
    """What a rate sends: `channels` [kept], in order, each with `classes` [kept, positions or 1], at this step."""

    step: np.float32
    channels: np.ndarray
    classes: np.ndarray
    contexts: Contexts


class TransformCodec(Codec):
    """One float32 feature [B, C, ...] or [B, ..., C]. A component is a channel, or a channel at a position.

    Tables: settings `channel_axis`, `per_position`, `rounding`; arrays `steps` float32 [rates], `index` uint8 [rates,
    components] (the class of each), `thresholds` int32 [rates, blocks - 1, bins - 1] and `choices` uint8 [classes,
    bins + 1] (see contexts.Contexts), `frequencies`, `radii` (see entropy.FrequencyTables) and `offsets` float32
    [classes, 7], which a reconstruction adds to its symbol, in steps. A ladder may end before its tables do.
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
        if not (steps > 1e-20).all() or not (steps < 1e20).all():
            raise CodecError(f"steps {steps.tolist()}, allowed above zero")
        self.index = array(arrays, "index", "|u1", (len(steps), None))
        self.choices = array(arrays, "choices", "|u1", (None, None))
        self.offsets = array(arrays, "offsets", "<f4", (len(self.choices), 2 * BUCKETS + 1))
        channels = self.features[0].shape[self.axis]
        if not isinstance(channels, int) or channels < 1 or self.index.shape[1] % channels:
            raise CodecError(f"{self.index.shape[1]} components for {channels} channels do not fit")
        if not self.per_position and self.index.shape[1] != channels:
            raise CodecError(f"{self.index.shape[1]} components for {channels} channels, allowed one each")
        blocks = len(block_bounds(channels))
        thresholds = array(arrays, "thresholds", "<i4", (len(steps), blocks - 1, None))
        check_contexts(thresholds, self.choices, self.index[self.index != DROPPED], len(self.tables))
        self.conditionals: dict[tuple[int, int, int, int], Any] = {}  # of refinement.py
        self.layouts = [
            self._layout(*row)
            for row in zip(steps, self.index.reshape(len(steps), channels, -1), thresholds, strict=True)
        ]

    def _layout(self, step: np.float32, index: np.ndarray, thresholds: np.ndarray) -> Layout:
        dropped = index == DROPPED
        if (dropped.any(1) != dropped.all(1)).any():
            raise CodecError("a channel is dropped at some positions, allowed all or none")
        channels = np.flatnonzero(~dropped[:, 0])
        classes = index[channels]
        return Layout(step, channels, classes, Contexts(self.tables, thresholds, self.choices, classes))

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        symbols = self.quantize(arrays[0], rate)
        return self.layouts[rate].contexts.encode(symbols, self.places(arrays[0].shape))

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        return [self.reconstruct(self.symbols(payload, shapes[0], rate), shapes[0], rate)]

    def quantize(self, feature: np.ndarray, rate: int) -> np.ndarray:
        """Symbols int32 [kept, B, positions] of a rate."""
        layout = self.layouts[rate]
        places = self.places(feature.shape)
        first = np.moveaxis(feature, self.axis, 0)
        rows = first.reshape(first.shape[0], first.shape[1], math.prod(places))[layout.channels]
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
        symbols: np.ndarray = np.copysign(np.floor(magnitude), scaled).astype(np.int32)
        return symbols

    def symbols(self, payload: bytes, shape: tuple[int, ...], rate: int) -> np.ndarray:
        """What `quantize` gave. Raises CodecError."""
        return self.layouts[rate].contexts.decode(payload, shape[0], self.places(shape))

    def reconstruct(self, symbols: np.ndarray, shape: tuple[int, ...], rate: int) -> np.ndarray:
        """float32 of `shape` from symbols int32 [kept, B, positions]."""
        layout = self.layouts[rate]
        bucket = np.clip(symbols, -BUCKETS, BUCKETS) + np.int32(BUCKETS)
        bucket += (layout.classes.astype(np.int32) * (2 * BUCKETS + 1))[:, None, :]
        values = self.offsets.ravel()[bucket]
        values += symbols
        values *= layout.step
        if len(values) != shape[self.axis]:
            rows = np.zeros((shape[self.axis], *values.shape[1:]), np.float32)
            rows[layout.channels] = values
            values = rows
        first = values.reshape(shape[self.axis], shape[0], *self.places(shape))
        return np.ascontiguousarray(np.moveaxis(first, 0, self.axis))

    def places(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the axes beside batch and channels. Raises CodecError where the components are not the tables'."""
        places = tuple(size for at, size in enumerate(shape) if at not in (0, self.axis))
        components = shape[self.axis] * math.prod(places) if self.per_position else shape[self.axis]
        if components != self.index.shape[1]:
            raise CodecError(f"{components} components in {list(shape)}, allowed {self.index.shape[1]}")
        return places
