"""A Segment: one fused run of operators with its costs, the unit of every latency and energy estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

# A kernel that only moves or maps numbers is launched in this part of the time that a product takes, which packs its
# operands and wakes its threads: what fits ViTs with and without pruned tokens (samples/benchmarks/latency_model.py).
LIGHT_KINDS = ("elementwise", "movement", "pool")
LIGHT_DISPATCH = 0.3


@dataclass(frozen=True)
class Segment:
    """`kind`: conv, depthwise, matmul, norm, pool, elementwise, movement or other.

    `flops` (2 per multiply-add) run at `precision` (fp32, fp16, int8); `bytes_moved` counts weights, inputs and
    outputs that cross memory once; `launches` is the number of kernels.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    kind: str
    precision: str
    flops: float
    bytes_moved: float
    launches: int = 1

    @property
    def dispatches(self) -> float:
        """Launches, counted in those of a product."""
        return self.launches * (LIGHT_DISPATCH if self.kind in LIGHT_KINDS else 1.0)
