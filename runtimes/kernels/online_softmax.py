"""The online softmax that attention kernels share, and 2^x by multiplications alone.

    of a tile of scores s:   m' = max(m, ceil(max s)),   w = 2^(s - m'),   total' = 2^(m - m') total + sum w
    2^x = 2^n p(f),          n = floor(x), f = x - n in [0, 1)      (Cody-Waite: 2^n is a shift of the exponent's bits)

m is a whole number (Softermax, arXiv:2103.09301): every rescaling is exact, and a weight rounds to bf16 alike at any m.
That permits to leave m behind the maximum by up to `threshold` and skip the rescaling; the division at the end uses the
same m. p is the polynomial of degree 3 or 5 with the least largest relative error on [0, 1], found by Remez' exchange,
for programs whose exponential unit is the narrowest part (both: FlashAttention-4, arXiv:2603.05451). Below -126, where
float32 leaves its normal numbers, it gives 0; above 127 it is not defined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import UsageError

LOG2_E = math.log2(math.e)
LN_2: tl.constexpr = tl.constexpr(math.log(2))
# Below any score: finite, so that no difference of two infinities arises.
LOWEST: tl.constexpr = tl.constexpr(-1e30)

CUBIC: tl.constexpr = tl.constexpr((0.9999252186, 0.6958335405, 0.2260671554, 0.07802452264))
QUINTIC: tl.constexpr = tl.constexpr(
    (0.9999999251, 0.6931530732, 0.240153617, 0.05582631805, 0.00898934009, 0.001877576675)
)

# The largest relative error by degree: of the polynomial, and of four (six) float32 roundings on top. 0 is the unit's.
ERRORS = {0: 2.0**-22, 3: 7.5e-5, 5: 1.9e-7}


@dataclass(frozen=True)
class Method:
    """How a kernel computes, not what. `threshold`: binary orders of magnitude by which a weight may pass 1 before the
    sums are rescaled, 0 to 15 (fp16 ends at 2^16). `degree`: of the polynomial for 2^x, 0 for the GPU's own unit."""

    threshold: int = 8
    degree: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 15:
            raise UsageError(f"threshold is {self.threshold}, allowed: 0 to 15")
        if self.degree not in ERRORS:
            raise UsageError(f"degree is {self.degree}, allowed: {', '.join(map(str, ERRORS))}")

    @property
    def constants(self) -> dict[str, int]:
        return {"THRESHOLD": self.threshold, "DEGREE": self.degree}


@triton.jit
def power_of_two(x, DEGREE: tl.constexpr):
    """float32 of any shape; `DEGREE` 0 asks the unit."""
    if DEGREE == 0:
        return tl.exp2(x)
    above = tl.maximum(x, -127.0)
    whole = tl.floor(above)
    part = above - whole
    if DEGREE == 3:
        value = (CUBIC[3] * part + CUBIC[2]) * part
        value = (value + CUBIC[1]) * part + CUBIC[0]
    else:
        value = (QUINTIC[5] * part + QUINTIC[4]) * part
        value = ((value + QUINTIC[3]) * part + QUINTIC[2]) * part
        value = (value + QUINTIC[1]) * part + QUINTIC[0]
    shift = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -126.0, 0.0, value * shift)


def power_of_two_reference(x: Tensor, degree: int) -> Tensor:
    """The same in torch, float32."""
    if degree == 0:
        return torch.exp2(x)
    coefficients = (CUBIC if degree == 3 else QUINTIC).value
    above = x.clamp(min=-127)
    whole = above.floor()
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * (above - whole) + coefficient
    return torch.where(x < -126, 0.0, torch.ldexp(value, whole.int()))


@triton.jit
def absorb(scores, product, total, reference, THRESHOLD: tl.constexpr, DEGREE: tl.constexpr):
    """Scores [M, N] of a tile; sums so far: product [M, D], total [M], of weights 2^(s - reference [M]). Returns the
    tile's weights and the sums rescaled to their reference; the tile's values are still to be added to the product."""
    highest = tl.ceil(tl.max(scores, 1))
    grows = highest - reference > THRESHOLD
    if THRESHOLD == 0:
        after = tl.where(grows, highest, reference)
        factor = tl.exp2(reference - after)
        product = product * factor[:, None]
        total = total * factor
        reference = after
    else:
        if tl.max(grows.to(tl.int32), 0) > 0:
            after = tl.where(grows, highest, reference)
            factor = tl.exp2(reference - after)
            product = product * factor[:, None]
            total = total * factor
            reference = after
    weights = power_of_two(scores - reference[:, None], DEGREE)
    total += tl.sum(weights, 1)
    return weights, product, total, reference
