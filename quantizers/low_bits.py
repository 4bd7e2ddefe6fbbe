"""Static quantization below 8 bits: narrower grids in the same int8 containers, 4-bit weights as int4 where stored.

No runtime here multiplies 6-bit integers: the artifact stores and computes in int8 and uses the first steps of it. It
has the numbers of a 6-bit accelerator, not its size or speed; 4-bit weights do halve the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from edgekit.model import Model
from edgekit.progress import Progress
from edgekit.quantizers.repquant import RepQuant


@dataclass(frozen=True)
class LowBits(RepQuant):
    weight_bits: ClassVar[int]
    activation_bits: ClassVar[int]

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        narrow = replace(self.scheme, weight_bits=self.weight_bits, activation_bits=self.activation_bits)
        return super(LowBits, replace(self, scheme=narrow)).apply(model, progress)


@dataclass(frozen=True)
class W6A6(LowBits):
    method: ClassVar[str] = "w6a6"
    weight_bits: ClassVar[int] = 6
    activation_bits: ClassVar[int] = 6


@dataclass(frozen=True)
class W4A8(LowBits):
    method: ClassVar[str] = "w4a8"
    weight_bits: ClassVar[int] = 4
    activation_bits: ClassVar[int] = 8
