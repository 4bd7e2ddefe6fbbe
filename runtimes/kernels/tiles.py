"""Tiles of kernels: products and casts that the interpreter gets wrong in bf16, and pointers for wide loads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(value):
    """As float32. The interpreter's own conversion of bf16 loses subnormals: these are the upper half of its bits."""
    if value.dtype == tl.bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def multiply(one, other, product):
    """Product of two tiles of one type, added to `product` in float32."""
    if INTERPRETED:  # the interpreter multiplies the bit patterns of bf16; products of two bf16 are exact in float32
        one, other = widen(one), widen(other)
    return tl.dot(one, other, product, input_precision="tf32x3")


@triton.jit
def narrow(value, TYPE: tl.constexpr):
    """float32 as TYPE, to the nearest and ties to even; NaN stays NaN."""
    if INTERPRETED and tl.bfloat16 == TYPE:  # the interpreter cuts bf16 off instead
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value == value, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(TYPE)


@triton.jit
def at(pointer, places, ALIGNED: tl.constexpr):
    """Pointers [N, D] that a thread may take 16 bytes along D from: code compiled ahead of time cannot see it."""
    pointers = pointer + places
    if ALIGNED:
        pointers = tl.multiple_of(pointers, (1, 16))
    return pointers


def all_aligned(width: int, *tensors: Tensor) -> bool:
    """Whether every row of `width` values of every tensor starts at a multiple of 16 bytes."""
    return all(one.data_ptr() % 16 == 0 and width * one.element_size() % 16 == 0 for one in tensors)
