"""The log-sqrt2 grid of probabilities, and the choice of its base.

Li et al. 2023, RepQ-ViT, arXiv:2212.08254, section 3.3; RepQuant, arXiv:2402.05628, section 3.2. Probabilities crowd
near zero, where a uniform grid has one step: codes are q = round(-2 log2(p / s)), values s 2^(-q/2). The scale
reparameterization writes 2^(-q/2) as 2^(-ceil(q/2)) times sqrt2 where q is odd, so that hardware shifts by whole bits
and multiplies by one of two scales.

PTQ4SAM (Lv et al. 2024, arXiv:2405.03144, section 3.3) lets each attention choose the base 2^(1/t), t = 1, 2, 4, ..:
codes q = round(-t log2 p); `best_base` takes the one with the least error of probabilities times values.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASES = (1, 2, 4)


def encode(probabilities: Tensor, bits: int, scale: float = 1.0, base: int = 2) -> Tensor:
    """Codes uint8 in [0, 2^bits - 1], the last one for all that is smaller, zero included. `base` t: 2^(1/t)."""
    last = 2**bits - 1
    smallest = scale * 2.0 ** (-last / base)
    codes = torch.round(-base * torch.log2(probabilities.clamp_min(smallest) / scale))
    return codes.clamp(0, last).to(torch.uint8)


def decode(codes: Tensor, scale: float = 1.0, base: int = 2) -> Tensor:
    """scale x 2^(-codes / base), float32."""
    return scale * torch.exp2(-codes.float() / base)


def best_base(probabilities: Tensor, values: Tensor, bits: int, bases: tuple[int, ...] = BASES) -> int:
    """probabilities [.., N, T], values [.., T, D]: the base whose rounding changes their product least."""
    wanted = probabilities @ values

    def error(base: int) -> float:
        return float((decode(encode(probabilities, bits, base=base), base=base) @ values - wanted).square().sum())

    return min(bases, key=error)
