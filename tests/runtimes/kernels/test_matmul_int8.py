"""Weights in 8 bits: exact sums, the quantizers' grid, operands that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekit.errors import InputError
from edgekit.quantization import WeightGrid
from edgekit.quantizers.grids import quantize_weight
from edgekit.runtimes.kernels.matmul_int8 import MOST_INPUTS, W8A8, W8A16, multiply_w8a8, multiply_w8a16, quantize_rows


def operands(count: int, outputs: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(count, width, generator=generator).bfloat16(),
        torch.randn(outputs, width, generator=generator),
        torch.randn(outputs, generator=generator),
    )


def test_sums_are_those_of_whole_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-128, 128, (size, 2000), generator=generator, dtype=torch.int8) for size in (3, 5))
    ones = torch.ones(5)
    wanted = (x.long() @ weight.long().T).float()
    for answer in (W8A8.launch, W8A8.reference):
        assert torch.equal(answer(x, weight, ones[:3], ones, None, torch.float32), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 16, 17])
def test_few_rows_and_many_give_the_same_bits(count: int) -> None:
    """Split K or not, int32 sums are equal; a row's result does not hang on its neighbours."""
    x, weight, bias = operands(40, 12, 304)
    codes, row_scales = quantize_rows(x)
    weight, column_scales = quantize_rows(weight)
    whole: Any = W8A8.launch(codes, weight, row_scales, column_scales, bias, torch.float32)
    part = W8A8.launch(codes[:count], weight, row_scales[:count], column_scales, bias, torch.float32)
    assert torch.equal(part, whole[:count])  # type: ignore[arg-type]


def test_rows_are_quantized_on_the_grid_of_the_quantizers() -> None:
    weight = torch.cat([operands(1, 6, 33)[1], torch.zeros(1, 33)])
    codes, scales = quantize_rows(weight)
    assert codes.abs().amax(1).tolist() == [127] * 6 + [0] and scales[-1] == 1
    grid = WeightGrid(scales, torch.zeros(7, dtype=torch.int64), 0, 8)
    assert torch.equal(codes, quantize_weight(weight, grid))
    assert ((codes * scales[:, None] - weight).abs() <= scales[:, None] * (0.5 + 1e-5)).all()
    assert quantize_rows(torch.empty(2, 0))[0].shape == (2, 0)


def test_quantized_layers_are_near_their_floats() -> None:
    x, weight, bias = operands(9, 24, 256)
    wanted = x.float() @ weight.T + bias
    codes, row_scales = quantize_rows(x)
    steps, column_scales = quantize_rows(weight)
    # Half a step of each weight, of variance 1/12, times activations of variance 1; twice that where both round.
    step = float(column_scales.max())
    for got, parts in (
        (multiply_w8a16(x, steps, column_scales, bias, torch.float32), 1),
        (multiply_w8a8(codes, steps, row_scales, column_scales, bias, torch.float32), 2),
    ):
        assert got.dtype == torch.float32
        assert (got - wanted).square().mean().sqrt() < 1.5 * step * (parts * 256 / 12) ** 0.5
    assert multiply_w8a16(x, steps, column_scales).dtype == torch.bfloat16


def test_strided_and_unaligned_operands_are_read_right() -> None:
    x, weight, _ = operands(4, 20, 48)
    steps, scales = quantize_rows(weight)
    shifted = torch.cat([x.flatten()[:3], x.flatten()])[3:].reshape(4, 48)
    turned = steps.T.contiguous().T
    wanted: Any = W8A16.launch(x, steps, None, scales, None, torch.float32)
    assert torch.equal(W8A16.launch(shifted, turned, None, scales, None, torch.float32), wanted)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = operands(2, 3, 8)
    steps, scales = quantize_rows(weight)
    with pytest.raises(InputError, match=r"x: got float32 \[2, 8\], allowed bfloat16 \[M, K\]"):
        multiply_w8a16(x.float(), steps, scales)
    with pytest.raises(InputError, match=r"weight: got int8 \[3, 7\], allowed int8 \[N, 8\]"):
        multiply_w8a16(x, steps[:, :7], scales)
    with pytest.raises(InputError, match=r"bias: got float32 \[2\], allowed bfloat16 or float32 \[3\]"):
        multiply_w8a16(x, steps, scales, bias[:2])
    with pytest.raises(InputError, match="output: got float16, allowed bfloat16 or float32"):
        multiply_w8a16(x, steps, scales, bias, torch.float16)
    with pytest.raises(InputError, match=r"row_scales: got float32 \[3\], allowed float32 \[2\]"):
        multiply_w8a8(x.to(torch.int8), steps, scales, scales)
    long = torch.zeros(1, MOST_INPUTS + 1, dtype=torch.int8)
    with pytest.raises(InputError, match=f"allowed {MOST_INPUTS} at most"):
        multiply_w8a8(long, long, scales[:1], scales[:1])
    with pytest.raises(InputError, match="allowed floats"):
        quantize_rows(steps)
