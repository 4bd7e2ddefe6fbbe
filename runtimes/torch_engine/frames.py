"""Frames of many devices, each at its own rate, decoded together where the model runs: symbols to features in one pass.

What is left of a frame on the host is its entropy coding; symbols cross to the device in one or two bytes each, where
the kernel `ragged-dequantize` writes the dense batch (its reference elsewhere). The values are the codec's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.cubins.ragged_decode import channels_first, pack_symbols, rate_tables
from edgekit.runtimes.kernels.base import call
from edgekit.runtimes.kernels.ragged_dequantize import DEQUANTIZE


class FrameReader:
    """Of one codec, its tables on `place`."""

    def __init__(self, codec: TransformCodec, place: torch.device) -> None:
        """Raises UsageError for a codec whose rates do not send leading channels, which it decodes itself."""
        tables = rate_tables(codec)
        self._place, self._first = place, channels_first(codec)
        self._positions = tables.classes.shape[2] if codec.per_position else None
        # Copies: tables that lie in a bundle's bytes cannot be written, and torch knows no such tensors.
        self._tables = [torch.from_numpy(one.copy()).to(place) for one in vars(tables).values()]
        self._means = torch.zeros_like(self._tables[0])

    def read(self, symbols: Sequence[np.ndarray], rates: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """float32 [rows, *shape] on the device, on its current stream. `symbols`: int32 [kept, 1, positions] a row."""
        packed = pack_symbols(symbols, rates)
        moved = [torch.from_numpy(one) for one in (packed.symbols, packed.starts, packed.kept, packed.rates)]
        if self._place.type == "cuda":
            moved = [one.pin_memory().to(self._place, non_blocking=True) for one in moved]
        steps, classes, offsets = self._tables
        positions = math.prod(shape) // steps.shape[1]
        dense: Tensor = call(
            DEQUANTIZE, *moved, steps, self._means, classes, offsets, positions, torch.float32, self._first
        )
        return dense.reshape(len(symbols), *shape)
