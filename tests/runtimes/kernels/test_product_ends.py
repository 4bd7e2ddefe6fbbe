"""Conversions to bf16, checks of operands."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from edgekit.errors import InputError
from edgekit.runtimes.kernels.product_ends import aligned, centred_bf16, exact_bf16, expect, sum_entry
from edgekit.runtimes.kernels.tiles import narrow


@triton.jit
def _convert(values, nearest, exact, size: tl.constexpr):
    place = tl.arange(0, size)
    value = tl.load(values + place)
    tl.store(nearest + place, narrow(value, tl.bfloat16))
    tl.store(exact + place, exact_bf16(value))


@triton.jit
def _centre(codes, out, zero, size: tl.constexpr):
    place = tl.arange(0, size)
    tl.store(out + place, centred_bf16(tl.load(codes + place), zero))


def test_floats_round_to_bf16_as_torch_rounds_them() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=generator).to(torch.int32)
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    values = bits.view(torch.float32)
    values[: len(special)] = torch.tensor(special)
    nearest, exact = torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.bfloat16)
    _convert[(1,)](values, nearest, exact, size=4096)
    assert torch.equal(nearest.isnan(), values.isnan())
    number = ~values.isnan()
    assert torch.equal(nearest.view(torch.int16)[number], values.bfloat16().view(torch.int16)[number])
    kept = number & (values.bfloat16().float() == values)
    assert torch.equal(exact.view(torch.int16)[kept], values.bfloat16().view(torch.int16)[kept])


@pytest.mark.parametrize("zero", [0, 8, 15, 128])
def test_every_code_less_its_zero_point_is_exact(zero: int) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    out = torch.empty(256, dtype=torch.bfloat16)
    _centre[(1,)](codes, out, zero, size=256)
    assert torch.equal(out.float(), codes.float() - zero)


def test_what_is_not_aligned_is_copied() -> None:
    values = torch.arange(64, dtype=torch.int8)
    assert aligned(values).data_ptr() == values.data_ptr()
    assert aligned(values[3:]).data_ptr() % 16 == 0
    assert torch.equal(aligned(values[3:]), values[3:])
    assert aligned(values.reshape(8, 8).T).is_contiguous()


def test_an_operand_that_does_not_fit_is_told_with_what_does() -> None:
    with pytest.raises(InputError, match=r"x: got float32 \[2, 3\], allowed int8 \[M, 3\]"):
        expect("x", torch.zeros(2, 3), [torch.int8], ["M", 3])
    with pytest.raises(InputError, match=r"x: got int8 \[2\], allowed int8 or bfloat16 \[M, K\]"):
        expect("x", torch.zeros(2, dtype=torch.int8), [torch.int8, torch.bfloat16], ["M", "K"])


def test_the_sum_of_splits_is_compiled_with_as_many_as_are_launched() -> None:
    (config,) = sum_entry("fp32", 4, 0, 1).configs
    assert dict(config.constants) == {"BLOCK_N": 256, "SPLITS": 4, "ROWS": 0, "COLUMNS": 1, "BIAS": 1}
