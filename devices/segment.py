"""A Segment: one fused run of operators with its costs, the unit of every latency and energy estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Segment:
    """`kind`: conv, depthwise, matmul, attention, norm, pool, elementwise, movement or other.

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
