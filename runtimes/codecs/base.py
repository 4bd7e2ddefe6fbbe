"""What every codec obeys: arrays in, payload bytes out at a rate of its ladder, and back within bounds.

A payload is what `frame.py` wraps: it holds no shape, no digest and no checksum of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from edgekit.bundle.manifest import Codec as CodecEntry
from edgekit.errors import CodecError
from edgekit.registry import CODECS
from edgekit.tensors import TensorSpec

MAX_ELEMENTS = 1 << 24  # of one feature: what a few hostile bytes can make a decoder allocate


class Codec(ABC):
    """Stateless once made: `encode` and `decode` may be called from several threads.

    `features` are the arrays that cross, the batch first; `rates` is the length of the ladder, index 0 the finest.
    The bytes depend on values, rate and tables alone: integer arithmetic, or float32 operations that IEEE 754 fixes.
    """

    def __init__(self, features: Sequence[TensorSpec], rates: int, tables: bytes | None) -> None:
        """Raises CodecError for tables that do not fit."""
        self.features, self.rates = tuple(features), rates
        self._load(tables)

    @abstractmethod
    def _load(self, tables: bytes | None) -> None:
        """Reads `tables`, which may be hostile."""

    @abstractmethod
    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        pass

    @abstractmethod
    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        """Raises CodecError for anything that `_encode` does not write; bounded by the shapes in time and memory."""

    def encode(self, arrays: Sequence[np.ndarray], rate: int = 0) -> bytes:
        """Raises CodecError for a rate off the ladder, or arrays that do not fit `features`."""
        self.check_rate(rate)
        self.check_arrays(arrays)
        return self._encode(arrays, rate)

    def decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int = 0) -> list[np.ndarray]:
        """Raises CodecError for a rate off the ladder, shapes that do not fit `features`, or a damaged payload."""
        self.check_rate(rate)
        self.check_shapes(shapes)
        return self._decode(payload, shapes, rate)

    def check_arrays(self, arrays: Sequence[np.ndarray]) -> None:
        if len(arrays) != len(self.features):
            raise CodecError(f"{len(arrays)} arrays, allowed {len(self.features)}")
        for spec, array in zip(self.features, arrays, strict=True):
            reason = spec.mismatch(array)
            if reason is None and array.size > MAX_ELEMENTS:
                reason = f"{array.size} elements, allowed {MAX_ELEMENTS}"
            if reason is not None:
                raise CodecError(f"feature {spec.name!r} has {reason}", hint="encode what this bundle's head gives")

    def check_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        if len(shapes) != len(self.features):
            raise CodecError(f"{len(shapes)} shapes, allowed {len(self.features)}")
        for spec, shape in zip(self.features, shapes, strict=True):
            if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
                raise CodecError(f"feature {spec.name!r} of shape {list(shape)}, allowed {MAX_ELEMENTS} elements")
            if len(shape) != len(spec.shape) or any(
                isinstance(want, int) and want != got for want, got in zip(spec.shape, shape, strict=True)
            ):
                raise CodecError(f"feature {spec.name!r} of shape {list(shape)}, allowed {list(spec.shape)}")

    def check_rate(self, rate: int) -> None:
        if not 0 <= rate < self.rates:
            raise CodecError(f"rate {rate}, allowed 0 to {self.rates - 1}", hint="`edgekit inspect` lists the rates")


def open_codec(entry: CodecEntry, tables: bytes | None) -> Codec:
    """The codec that a manifest describes. Raises UnknownNameError or CodecError."""
    codec: Codec = CODECS.load(entry.kind)([feature.spec() for feature in entry.features], len(entry.rates), tables)
    return codec
