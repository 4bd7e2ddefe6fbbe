"""A product with MXFP4 weights: OCP Microscaling Formats (MX) Specification v1.0, sections 5.2, 5.3.3 and 5.4.1.

    y[m, n] = round(sum_k x[m, k] * e[n, k] * 2^(s[n, k / 32] - 127) + b[n])

x: bf16 [M, K]; e: E2M1 codes, two a byte, the first in the low half: uint8 [N, K / 2]; s: E8M0 codes uint8 [N, K / 32],
255 is NaN; b: bf16 or float32 [N], optional; y: bf16 or float32 [M, N].

A weight times its scale has 2 bits of mantissa: bf16 holds it exactly, the subnormal ones too, and is infinite where
float32 is (4 or 6 times 2^127). Products are exact in float32; rounded are their sum and y, to nearest.
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
from edgekit.runtimes.kernels.matmul_int4 import pack, unpack
from edgekit.runtimes.kernels.product_ends import (
    FEW_ROWS,
    aligned,
    exact_bf16,
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

BLOCK = 32
# By the code's three low bits; its fourth is the sign.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS, NOT_A_NUMBER = 127, 255


def decode(packed: Tensor, scales: Tensor) -> Tensor:
    """uint8 [N, K / 2], uint8 [N, K / 32] -> float32 [N, K], exact; NaN where a scale is, infinite beyond float32."""
    expect("packed", packed, [torch.uint8], ["N", "K / 2"])
    expect("scales", scales, [torch.uint8], [packed.shape[0], packed.shape[1] * 2 // BLOCK])
    if packed.shape[1] * 2 % BLOCK:
        raise InputError(f"packed: got {packed.shape[1]} bytes a row, allowed multiples of {BLOCK // 2}")
    values = torch.tensor([*MAGNITUDES, *(-one for one in MAGNITUDES)], dtype=torch.float64, device=packed.device)
    blocks = values[unpack(packed).long()].reshape(*scales.shape, BLOCK)
    # In float64: a power of two that float32 makes subnormal would be lost where a device flushes those.
    decoded = torch.ldexp(blocks, (scales.int() - BIAS)[..., None])
    decoded = torch.where((scales == NOT_A_NUMBER)[..., None], float("nan"), decoded)
    return decoded.float().reshape(len(packed), packed.shape[1] * 2)


def multiply_mxfp4(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """bf16 [M, K], uint8 [N, K / 2], uint8 [N, K / 32], bf16 or float32 [N] -> `dtype` [M, N].

    Raises InputError for other types or shapes, and for a K that is no multiple of 32.
    """
    expect("x", x, [torch.bfloat16], ["M", "K"])
    width = x.shape[1]
    if width % BLOCK:
        raise InputError(f"x: got {width} inputs, allowed multiples of {BLOCK}")
    expect("packed", packed, [torch.uint8], ["N", width // 2])
    expect("scales", scales, [torch.uint8], [packed.shape[0], width // BLOCK])
    expect_bias(bias, packed.shape[0])
    expect_output(dtype)
    found: Tensor = call(MXFP4, x, packed, scales, bias, dtype)
    return found


def _reference(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return finish_reference(x.float() @ decode(packed, scales).T, None, None, bias, dtype)


@triton.jit
def _powers(codes):
    """E8M0 -> float32: the code is float32's exponent, but for 0, whose power is subnormal, and 255, which is NaN."""
    exponent = codes.to(tl.uint32) << 23
    bits = tl.where(codes == 0, 0x00400000, tl.where(codes == 255, 0x7FC00000, exponent))
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _elements(codes):
    """E2M1 in uint8 -> float32: sign, exponent and mantissa moved to float32's places, and its bias of 1 made up for.
    0.5, the one subnormal, is one of float32 for a moment."""
    wide = codes.to(tl.uint32)
    return (((wide & 8) << 28) | ((wide & 7) << 22)).to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2^126


@triton.jit
def _multiply_kernel(
    x, packed, scales, totals, row_scales, column_scales, bias, out, count, outputs,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    share: tl.constexpr = (WIDTH + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    first = tl.program_id(2) * share
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, tl.minimum(first + share, WIDTH), BLOCK_K):
        a = load_rows(x, rows, start + tl.arange(0, BLOCK_K), count, WIDTH)
        pairs = load_rows(packed, columns, start // 2 + tl.arange(0, BLOCK_K // 2), outputs, WIDTH // 2)
        blocks = start // 32 + tl.arange(0, BLOCK_K // 32)
        power = _powers(
            tl.load(
                scales + columns[:, None].to(tl.int64) * (WIDTH // 32) + blocks[None, :],
                mask=(columns < outputs)[:, None] & (blocks < WIDTH // 32)[None, :],
                other=0,
            )
        )
        codes = tl.reshape(tl.join(pairs & 15, pairs >> 4), [BLOCK_N, BLOCK_K // 32, 32])
        w = tl.reshape(exact_bf16(_elements(codes) * power[:, :, None]), [BLOCK_N, BLOCK_K])
        total = multiply(a, tl.trans(w), total)
    if SPLITS == 1:
        finish_tile(total, row_scales, column_scales, bias, out, rows, columns, count, outputs, ROWS, COLUMNS, BIAS)
    else:
        store_total(total, totals, rows, columns, count, outputs)


CONFIGS = (
    Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "SPLITS": 4}, warps=4, stages=4),
    Config({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "SPLITS": 1}, warps=8, stages=3),
)
# Compiled ahead of time: a width that layers have, no scales of whole rows or columns, a bias.
FLAGS = {"WIDTH": 4096, "ROWS": 0, "COLUMNS": 0, "BIAS": 1}


def _launch(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    (count, width), outputs = x.shape, len(packed)
    config = choose(CONFIGS, 0 if count <= FEW_ROWS else 1)

    def run(grid: tuple[int, int, int], totals: Tensor, *ends: Tensor, **flags: int) -> None:
        _multiply_kernel[grid](
            aligned(x), aligned(packed), scales.contiguous(), totals, *ends, count, outputs, WIDTH=width, **flags,
            **config.constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    out = torch.empty(count, outputs, dtype=dtype, device=x.device)
    return launch_product(run, config, torch.float32, (count, outputs), (None, None, bias), out)


def _cost(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Cost:
    (count, width), outputs = x.shape, len(packed)
    operands = sum(one.nbytes for one in (x, packed, scales, bias) if one is not None)
    return Cost(2.0 * count * outputs * width, float(operands + count * outputs * dtype.itemsize))


def _scene(
    count: int, outputs: int, width: int, bias: bool = False, scale: tuple[int, int] = (120, 128),
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:  # fmt: skip
    """`scale`: the range of its codes, the last left out."""
    generator = torch.Generator().manual_seed(width + outputs)
    x = torch.randn(count, width, generator=generator).bfloat16()
    codes = torch.randint(16, (outputs, width), generator=generator, dtype=torch.uint8)
    scales = torch.randint(*scale, (outputs, width // BLOCK), generator=generator, dtype=torch.uint8)
    return x, pack(codes), scales, torch.randn(outputs, generator=generator) if bias else None, dtype


def _examples() -> Sequence[Example]:
    small, *least = _scene(3, 7, 96, scale=(0, 2))
    large, *most = _scene(4, 9, 64, scale=(246, 253))
    x, packed, scales, *rest = _scene(2, 5, 64)
    # Neither zeros nor two signs: infinity in the place of NaN would otherwise end as NaN too.
    positive = (packed & 0x66) | 0x11
    missing = torch.where(scales == scales.max(), NOT_A_NUMBER, scales)
    return [
        Example("odd", _scene(5, 19, 96)),
        Example("bias", _scene(17, 21, 160, bias=True)),
        Example("more than a tile", _scene(130, 150, 96, bias=True)),
        Example("more columns and inputs than a tile", _scene(2, 67, 544)),
        Example("one row", _scene(1, 1, 32)),
        Example("no rows", _scene(0, 5, 64)),
        Example("no inputs", _scene(2, 5, 0, bias=True, dtype=torch.bfloat16)),
        Example("subnormal weights", (small * 2.0**100, *least)),
        Example("largest weights", (large * 2.0**-100, *most)),
        Example("a scale that is NaN", (x.abs() + 1, positive, missing, *rest)),
        Example(
            "in bf16", _scene(9, 33, 128, bias=True, dtype=torch.bfloat16),
            2.0**-7, "a value between two of bf16 may round to either: 2^-7 of it at most",
        ),
    ]  # fmt: skip


def _load(device: torch.device) -> tuple[Any, ...]:
    """Sixteen sequences that each decode a token, a layer of a model with 8 billion weights."""
    packed = torch.randint(256, (14336, 2048), device=device, dtype=torch.uint8)
    scales = torch.randint(115, 125, (14336, 128), device=device, dtype=torch.uint8)
    return torch.randn(16, 4096, device=device, dtype=torch.bfloat16), packed, scales, None, torch.bfloat16


MXFP4 = Kernel(
    name="matmul-mxfp4",
    formula="y[m, n] = sum_k x[m, k] e[n, k] 2^(s[n, k / 32] - 127) + b[n], x bf16, e E2M1, s E8M0",
    source="OCP Microscaling Formats (MX) Specification v1.0",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _multiply_kernel,
            {
                **dict.fromkeys(("x", "bias", "out"), "*bf16"),
                **dict.fromkeys(("packed", "scales"), "*u8"),
                **dict.fromkeys(("totals", "row_scales", "column_scales"), "*fp32"),
                **dict.fromkeys(("count", "outputs"), "i32"),
            },
            tuple(Config({**one.constants, **FLAGS}, one.warps, one.stages) for one in CONFIGS),
        ),
        sum_entry("fp32", CONFIGS[0].constants["SPLITS"], 0, 0),
    ),
)
