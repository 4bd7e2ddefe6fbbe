"""What a quantizer decided, apart from any file format: grids for weights and activations, and what stays float.

A quantized Model keeps a float graph whose weights already lie on their grid; this record says which grid, and on
which grids the activations are to be rounded. Every exporter lowers the same record, so that every format carries
the same scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Scheme:
    """How a target wants its integers. `reduce_range` keeps weights in 7 bits for CPUs whose u8 x s8 saturates.

    `float_outputs`: the last layer writes float; without it the target's integer kernels also write the outputs in
    8 bits. `integer_scores`: queries times keys are faster in integers there, keys signed. `weight_bits`,
    `activation_bits`: fewer than 8 use the first steps of the same integers.
    """

    name: str
    activation_dtype: str = "int8"
    symmetric_activations: bool = False
    per_channel_weights: bool = True
    reduce_range: bool = False
    float_outputs: bool = False
    integer_scores: bool = False
    weight_bits: int = 8
    activation_bits: int = 8

    @property
    def activation_range(self) -> tuple[int, int]:
        if self.activation_dtype == "uint8":
            return 0, 2**self.activation_bits - 1
        half = 2 ** (self.activation_bits - 1)
        return -half + self.symmetric_activations, half - 1

    @property
    def weight_limit(self) -> int:
        """The outermost step of a weight, in both directions."""
        lost = self.reduce_range and self.weight_bits == 8
        return (1 << (self.weight_bits - 1 - lost)) - 1


@dataclass(frozen=True)
class WeightGrid:
    """`scale` and `zero_point`: [channels] along `axis`, [channels, groups] with `group_size`, or [] per tensor."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int | None
    bits: int = 8
    group_size: int | None = None


@dataclass(frozen=True)
class ActivationGrid:
    """value = (q - zero_point) * scale, q in `dtype`'s range (the scheme's, where it is narrower)."""

    scale: float
    zero_point: int
    dtype: str
    quant_min: int
    quant_max: int

    @property
    def minimum(self) -> float:
        return (self.quant_min - self.zero_point) * self.scale

    @property
    def maximum(self) -> float:
        return (self.quant_max - self.zero_point) * self.scale


@dataclass(frozen=True)
class Fallback:
    """A layer kept at a higher precision than asked for."""

    layer: str
    precision: str
    why: str


@dataclass(frozen=True)
class Quantization:
    """`weights`: by parameter name in the graph module. `activations`: by the name of the graph node that makes them.

    `layers` are the names of the nodes (convolution, linear, matmul ...) that run quantized. For dynamic and
    weight-only methods `activations` is empty.
    """

    method: str
    scheme: Scheme
    weights: dict[str, WeightGrid] = field(default_factory=dict)
    activations: dict[str, ActivationGrid] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def is_static(self) -> bool:
        """Whether activations too lie on grids that were found beforehand."""
        return bool(self.activations)
