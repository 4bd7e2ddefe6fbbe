"""Weights in 4 bits: packing, the quantizers' groups, operands that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekit.errors import InputError
from edgekit.quantizers import mxfp4
from edgekit.quantizers.grids import group_grid, on_grid, quantize_weight
from edgekit.runtimes.kernels.matmul_int4 import CENTRE, GROUPS, W4A16, multiply_w4a16, pack, unpack


def codes_of(outputs: int, width: int) -> torch.Tensor:
    return torch.randint(16, (outputs, width), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(3, 10), (0, 8), (4, 0), (6,), (2, 3, 4)])
def test_codes_come_back_from_their_bytes(shape: tuple[int, ...]) -> None:
    codes = torch.randint(16, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack(codes)
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    assert torch.equal(unpack(packed), codes)


def test_bytes_are_those_of_the_quantizers() -> None:
    codes = codes_of(5, 64)
    assert torch.equal(pack(codes), torch.from_numpy(mxfp4.pack(codes.numpy())))
    assert pack(torch.tensor([1, 2], dtype=torch.uint8)).tolist() == [0x21]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack(unpack(every)), every)


@pytest.mark.parametrize("group", GROUPS)
def test_layers_are_those_of_the_weight_only_quantizer(group: int) -> None:
    generator = torch.Generator().manual_seed(group)
    weight = torch.randn(20, 256, generator=generator)
    x = torch.randn(6, 256, generator=generator).bfloat16()
    grid = group_grid(weight, 4, group)
    codes = (quantize_weight(weight, grid) + CENTRE).to(torch.uint8)
    wanted = x.float() @ on_grid(weight, grid).T
    for got in (
        multiply_w4a16(x, pack(codes), grid.scale, dtype=torch.float32),
        multiply_w4a16(x, pack(codes), grid.scale, torch.full_like(grid.scale, 8).to(torch.uint8), None, torch.float32),
    ):
        # on_grid rounds each weight once, by 2^-24: less than its sums do.
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("count", [3, 20])
def test_zero_points_shift_each_group(count: int) -> None:
    codes, x = codes_of(9, 96), torch.ones(count, 96, dtype=torch.bfloat16)
    zeros = torch.arange(27, dtype=torch.uint8).reshape(9, 3) % 16
    scales = torch.tensor([[1.0, 4.0, 0.25]]).half().repeat(9, 1)
    by_group = codes.long().reshape(9, 3, 32).sum(2) - 32 * zeros.long()
    wanted = (by_group * scales.float()).sum(1).expand(count, 9)
    for answer in (W4A16.launch, W4A16.reference):
        got: Any = answer(x, pack(codes), scales, zeros, None, torch.float32)
        assert torch.equal(got, wanted)  # whole numbers times powers of two


def test_what_does_not_fit_is_refused() -> None:
    x, packed, scales = torch.zeros(2, 64, dtype=torch.bfloat16), pack(codes_of(3, 64)), torch.ones(3, 2)
    assert multiply_w4a16(x, packed, scales).dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"x: got float32 \[2, 64\], allowed bfloat16 \[M, K\]"):
        multiply_w4a16(x.float(), packed, scales)
    with pytest.raises(InputError, match=r"packed: got int8 \[3, 32\], allowed uint8 \[N, 32\]"):
        multiply_w4a16(x, packed.to(torch.int8), scales)
    with pytest.raises(InputError, match=r"scales: got float64 \[3, 2\], allowed float16 or bfloat16 or float32 \[3, "):
        multiply_w4a16(x, packed, scales.double())
    with pytest.raises(InputError, match="scales: got 4 groups for 64 inputs, allowed 2 or 1"):
        multiply_w4a16(x, packed, torch.ones(3, 4))
    with pytest.raises(InputError, match="scales: got 1 groups for 40 inputs, allowed none"):
        multiply_w4a16(torch.zeros(2, 40, dtype=torch.bfloat16), packed[:, :20], torch.ones(3, 1))
    with pytest.raises(InputError, match="scales: got 1 groups for 33 inputs, allowed none"):
        multiply_w4a16(torch.zeros(2, 33, dtype=torch.bfloat16), packed[:, :16], torch.ones(3, 1))
    with pytest.raises(InputError, match="scales: got 2 groups for 0 inputs, allowed 0"):
        multiply_w4a16(x[:, :0], packed[:, :0], scales)
    with pytest.raises(InputError, match=r"zeros: got int8 \[3, 2\], allowed uint8 \[3, 2\]"):
        multiply_w4a16(x, packed, scales, scales.to(torch.int8))
    with pytest.raises(InputError, match=r"codes: got 16, allowed 0 to 15"):
        pack(torch.tensor([16, 0], dtype=torch.uint8))
    with pytest.raises(InputError, match=r"codes: got torch.uint8 \[3\], allowed uint8 \[.., K\], K even"):
        pack(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"packed: got torch\.int8"):
        unpack(torch.zeros(3, dtype=torch.int8))
