"""MXFP4 weights: OCP Microscaling Formats (MX) Specification v1.0, sections 5.2, 5.3.3 and 6.3.

Blocks of 32 neighbours along the inputs share one power of two (E8M0, one byte), each element is a sign, two bits of
exponent and one of mantissa (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4, 6. 4.25 bits a weight. Activations stay float.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import SourceError
from edgekit.model import Model
from edgekit.progress import Progress
from edgekit.quantization import Fallback, Quantization, WeightGrid
from edgekit.quantizers.anatomy import aten, layer_weight, replace_tensor, weighted_layers
from edgekit.quantizers.base import Quantizer

BLOCK = 32
# By the code's three low bits; its fourth is the sign.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*MAGNITUDES, *(-one for one in MAGNITUDES)], dtype=np.float32)
LARGEST_EXPONENT = 2  # of E2M1: 6 = 1.5 x 2^2
BIAS = 127  # of E8M0; its code 255 is NaN
SMALLEST, LARGEST = -127, 127


@dataclass(frozen=True)
class Mxfp4(Quantizer):
    """Linear layers whose input width is a multiple of 32; others keep their floats."""

    method: ClassVar[str] = "mxfp4"

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        graph = model.copy_graph()
        keep = dict(self.keep)
        weights: dict[str, WeightGrid] = {}
        layers = []
        candidates = [layer for layer in weighted_layers(graph) if layer.node.target is aten.linear.default]
        for layer in candidates:
            if layer.node.name in keep:
                continue
            weight = layer_weight(graph, layer).detach()
            if weight.shape[1] % BLOCK:
                keep[layer.node.name] = f"{weight.shape[1]} inputs are no multiple of the block of {BLOCK}"
                continue
            if layer.weight not in weights:
                codes, scales = encode(weight)
                replace_tensor(graph, layer.weight, decode(codes, scales))
                exponents = torch.from_numpy(scales.astype(np.int32)) - BIAS
                points = torch.zeros(scales.shape, dtype=torch.int64)
                # Every element is a whole number of halves, 12 at most: a uniform grid of 5 bits holds them exactly.
                halves = torch.ldexp(torch.full(exponents.shape, 0.5), exponents)
                weights[layer.weight] = WeightGrid(halves, points, 1, 5, BLOCK)
            layers.append(layer.node.name)
            progress("round weights", len(layers), len(candidates))
        if not layers:
            raise SourceError(f"{model.name} has no linear layer for mxfp4", hint="use --quantize int8 or fp16")
        fallbacks = tuple(Fallback(layer, "float32", why) for layer, why in keep.items())
        record = Quantization(self.method, self.scheme, weights, {}, tuple(layers), fallbacks)
        return replace(model, module=graph, quantization=record), f"{len(layers)} layers in 4.25 bits"


def encode(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """[.., N] float32, N a multiple of 32 -> codes uint8 [.., N] (low four bits), E8M0 scales uint8 [.., N / 32].

    Section 6.3: the scale is the largest power of two in the block over that of the element format; elements round to
    nearest, ties to the even code, and saturate at 6. A weight that already lies on such a grid comes back exactly.
    Raises ValueError for NaN or infinity, which E2M1 cannot hold.
    """
    values = weight.detach().numpy().astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("MXFP4 holds neither NaN nor infinity")
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(-1)
    exponents = np.frexp(np.where(largest > 0, largest, 1.0))[1] - 1 - LARGEST_EXPONENT
    exponents = np.where(largest > 0, np.clip(exponents, SMALLEST, LARGEST), SMALLEST)
    scaled = np.ldexp(blocks.astype(np.float64), -exponents[..., None])
    magnitude = np.minimum(np.abs(scaled), MAGNITUDES[-1])
    middles = (np.array(MAGNITUDES[1:]) + np.array(MAGNITUDES[:-1])) / 2
    below, above = np.searchsorted(middles, magnitude, side="left"), np.searchsorted(middles, magnitude, side="right")
    codes = np.where(below == above, below, np.where(below % 2 == 0, below, above))
    codes = codes | np.where(np.signbit(scaled), 8, 0)
    return codes.astype(np.uint8).reshape(values.shape), (exponents + BIAS).astype(np.uint8)


def decode(codes: np.ndarray, scales: np.ndarray) -> Tensor:
    """float32 of the codes' shape, exact: what a scale of 2^-127 makes subnormal is kept."""
    blocks = VALUES[codes].reshape(*codes.shape[:-1], -1, BLOCK).astype(np.float64)
    values = np.ldexp(blocks, scales.astype(np.int64)[..., None] - BIAS)
    return torch.from_numpy(values.astype(np.float32).reshape(codes.shape))


def pack(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in the low half: uint8 [.., N] -> [.., N / 2]."""
    packed: np.ndarray = codes[..., ::2] | (codes[..., 1::2] << 4)
    return packed


def unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
