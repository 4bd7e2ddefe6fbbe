"""A product with weights in 4 bits, a scale for each group of neighbours along the inputs (W4A16).

    y[m, n] = round(sum_g s[n, g] * (sum_(k in g) x[m, k] * (q[n, k] - z[n, g])) + b[n])

x: bf16 [M, K]; q: codes 0..15, two a byte, the first in the low half: uint8 [N, K / 2]; groups of 32, 64 or 128;
s: fp16, bf16 or float32 [N, K / group]; z: uint8 [N, K / group], 8 where there is none; b: bf16 or float32 [N],
optional; y: bf16 or float32 [M, N].

A weight is never rounded: q - z fits 5 bits and is exact in bf16, its product with x exact in float32. Scales multiply
the sums of their groups, not the weights. Rounded are those sums, the product with s and the sum over groups, all in
float32, and y, to nearest. Groups as in GPTQ, arXiv:2210.17323, section 4 (its further improvement, grouping).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import InputError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.choice import choose
from edgekit.runtimes.kernels.product_ends import (
    FEW_ROWS,
    aligned,
    centred_bf16,
    expect,
    expect_bias,
    expect_output,
    finish_reference,
    finish_tile,
    launch_product,
    load_rows,
    store_total,
    sum_entry,
)
from edgekit.runtimes.kernels.tiles import multiply

GROUPS = (32, 64, 128)
CENTRE = 8
SCALES = (torch.float16, torch.bfloat16, torch.float32)


def pack(codes: Tensor) -> Tensor:
    """uint8 [.., K], 0..15, K even -> two a byte, the first in the low half: uint8 [.., K / 2]."""
    if codes.dtype != torch.uint8 or codes.dim() < 1 or codes.shape[-1] % 2:
        raise InputError(f"codes: got {codes.dtype} {list(codes.shape)}, allowed uint8 [.., K], K even")
    if codes.numel() and int(codes.max()) > 15:
        raise InputError(f"codes: got {int(codes.max())}, allowed 0 to 15")
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """uint8 [.., K / 2] -> uint8 [.., K]."""
    if packed.dtype != torch.uint8 or packed.dim() < 1:
        raise InputError(f"packed: got {packed.dtype} {list(packed.shape)}, allowed uint8 [.., K / 2]")
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def multiply_w4a16(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """bf16 [M, K], uint8 [N, K / 2], floats [N, K / group], uint8 [N, K / group], floats [N] -> `dtype` [M, N].

    Raises InputError for other types or shapes, and for groups that are none of GROUPS.
    """
    expect("x", x, [torch.bfloat16], ["M", "K"])
    width = x.shape[1]
    expect("packed", packed, [torch.uint8], ["N", width // 2])
    expect("scales", scales, SCALES, [packed.shape[0], "K / group"])
    allowed = sorted({width // group for group in GROUPS if width % group == 0}, reverse=True)
    if scales.shape[1] not in allowed:
        numbers = " or ".join(map(str, allowed)) or "none"
        raise InputError(
            f"scales: got {scales.shape[1]} groups for {width} inputs, allowed {numbers}, of {GROUPS} inputs"
        )
    if zeros is not None:
        expect("zeros", zeros, [torch.uint8], list(scales.shape))
    expect_bias(bias, packed.shape[0])
    expect_output(dtype)
    found: Tensor = call(W4A16, x, packed, scales, zeros, bias, dtype)
    return found


def _reference(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    (count, width), (outputs, groups) = x.shape, scales.shape
    group = width // groups if groups else 0
    centre = torch.full_like(scales, CENTRE, dtype=torch.float32) if zeros is None else zeros.float()
    weight = unpack(packed).float().reshape(outputs, groups, group) - centre[..., None]
    by_group = torch.einsum("mgk,ngk->gmn", x.float().reshape(count, groups, group), weight)
    total = (by_group * scales.float().T[:, None, :]).sum(0)
    return finish_reference(total, None, None, bias, dtype)


@triton.jit
def _multiply_kernel(
    x, packed, scales, zeros, totals, row_scales, column_scales, bias, out, count, outputs,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    groups: tl.constexpr = WIDTH // GROUP
    share: tl.constexpr = (groups + SPLITS - 1) // SPLITS
    first = tl.program_id(2) * share
    of_columns = columns.to(tl.int64) * groups
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(first, tl.minimum(first + share, groups)):
        a = load_rows(x, rows, group * GROUP + tl.arange(0, GROUP), count, WIDTH)
        pairs = load_rows(packed, columns, group * (GROUP // 2) + tl.arange(0, GROUP // 2), outputs, WIDTH // 2)
        codes = tl.reshape(tl.join(pairs & 15, pairs >> 4), [BLOCK_N, GROUP])
        if ZEROS:
            zero = tl.load(zeros + of_columns + group, mask=columns < outputs, other=0).to(tl.float32)
            w = centred_bf16(codes, zero[:, None])
        else:
            w = centred_bf16(codes, 8)
        scale = tl.load(scales + of_columns + group, mask=columns < outputs, other=0.0).to(tl.float32)
        by_group = multiply(a, tl.trans(w), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        total += by_group * scale[None, :]
    if SPLITS == 1:
        finish_tile(total, row_scales, column_scales, bias, out, rows, columns, count, outputs, ROWS, COLUMNS, BIAS)
    else:
        store_total(total, totals, rows, columns, count, outputs)


CONFIGS = (
    Config({"BLOCK_M": 16, "BLOCK_N": 32, "SPLITS": 4}, warps=4, stages=4),
    Config({"BLOCK_M": 64, "BLOCK_N": 128, "SPLITS": 1}, warps=8, stages=3),
)

# Compiled ahead of time: a width that layers have, no scales of whole rows or columns, a bias.
FLAGS = {"WIDTH": 4096, "ROWS": 0, "COLUMNS": 0, "BIAS": 1}


def _launch(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    (count, width), (outputs, groups) = x.shape, scales.shape
    config = choose(CONFIGS, 0 if count <= FEW_ROWS else 1)
    points = scales if zeros is None else zeros

    def run(grid: tuple[int, int, int], totals: Tensor, *ends: Tensor, **flags: int) -> None:
        _multiply_kernel[grid](
            aligned(x), aligned(packed), scales.contiguous(), points.contiguous(), totals, *ends, count, outputs,
            WIDTH=width, GROUP=width // groups if groups else GROUPS[0], ZEROS=int(zeros is not None), **flags,
            **config.constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    out = torch.empty(count, outputs, dtype=dtype, device=x.device)
    return launch_product(run, config, torch.float32, (count, outputs), (None, None, bias), out)


def _cost(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Cost:
    (count, width), outputs = x.shape, len(packed)
    operands = sum(one.nbytes for one in (x, packed, scales, zeros, bias) if one is not None)
    flops = 2.0 * count * outputs * (width + scales.shape[1])
    return Cost(flops, float(operands + count * outputs * dtype.itemsize))


def _scene(
    count: int, outputs: int, width: int, group: int, zeros: bool = False, bias: bool = False,
    scale: torch.dtype = torch.bfloat16, dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:  # fmt: skip
    generator = torch.Generator().manual_seed(width + outputs)
    x = torch.randn(count, width, generator=generator).bfloat16()
    codes = torch.randint(16, (outputs, width), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(outputs, width // group, generator=generator) / 8 + 0.01).to(scale)
    points = torch.randint(16, scales.shape, generator=generator, dtype=torch.uint8) if zeros else None
    return x, pack(codes), scales, points, torch.randn(outputs, generator=generator) if bias else None, dtype


def _examples() -> Sequence[Example]:
    x, packed, scales, *_ = _scene(3, 7, 64, 32)
    ends = torch.full_like(packed, 0xF0)
    return [
        Example("odd", _scene(5, 19, 96, 32)),
        Example("zero points", _scene(5, 21, 192, 64, zeros=True, scale=torch.float16)),
        Example("bias, groups of 128", _scene(3, 18, 384, 128, bias=True, scale=torch.float32)),
        Example("more than a tile", _scene(70, 130, 160, 32, zeros=True, bias=True)),
        Example("more columns and groups than a tile", _scene(2, 67, 320, 64)),
        Example("one row", _scene(1, 1, 32, 32, zeros=True)),
        Example("no rows", _scene(0, 5, 64, 32)),
        Example("no inputs", _scene(2, 5, 0, 32, bias=True, dtype=torch.bfloat16)),
        Example("extreme codes, large values", (x * 1e30, ends, scales.float() * 1e4, None, None, torch.float32)),
        Example(
            "in bf16", _scene(9, 33, 128, 128, zeros=True, bias=True, dtype=torch.bfloat16),
            2.0**-7, "a value between two of bf16 may round to either: 2^-7 of it at most",
        ),
    ]  # fmt: skip


def _load(device: torch.device) -> tuple[Any, ...]:
    """Sixteen sequences that each decode a token, a layer of a model with 8 billion weights, groups of 128."""
    packed = torch.randint(256, (14336, 2048), device=device, dtype=torch.uint8)
    x = torch.randn(16, 4096, device=device, dtype=torch.bfloat16)
    return x, packed, torch.rand(14336, 32, device=device).bfloat16(), None, None, torch.bfloat16


W4A16 = Kernel(
    name="matmul-w4a16",
    formula="y[m, n] = sum_g s[n, g] sum_(k in g) x[m, k] (q[n, k] - z[n, g]) + b[n], x bf16, q 4 bits",
    source="GPTQ, arXiv:2210.17323, section 4",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _multiply_kernel,
            {
                "x": "*bf16",
                **dict.fromkeys(("packed", "zeros"), "*u8"),
                **dict.fromkeys(("totals", "row_scales", "column_scales"), "*fp32"),
                **dict.fromkeys(("scales", "bias", "out"), "*bf16"),
                **dict.fromkeys(("count", "outputs"), "i32"),
            },
            tuple(
                Config({**one.constants, **FLAGS, "GROUP": group, "ZEROS": zeros}, one.warps, one.stages)
                for one in CONFIGS
                for group, zeros in ((128, 0), (32, 1))
            ),
        ),
        sum_entry("fp32", CONFIGS[0].constants["SPLITS"], 0, 0),
    ),
)
