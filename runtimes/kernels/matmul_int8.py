"""Products with weights in 8 bits: activations in 8 bits too (W8A8), or in bf16 (W8A16).

    W8A8     y[m, n] = round(r[m] * c[n] * sum_k x[m, k] w[n, k] + b[n])     x: int8 [M, K], r: float32 [M]
    W8A16    y[m, n] = round(c[n] * sum_k x[m, k] w[n, k] + b[n])            x: bf16 [M, K]

w: int8 [N, K]; c: float32 [N]; b: bf16 or float32 [N], optional; y: bf16 or float32 [M, N]. W8A8 sums whole numbers in
int32, exact for K up to 131,071; they become float32, are multiplied by r, then by c, each product rounded. W8A16 makes
bf16 of a weight in registers, which is exact, as are the products in float32; only their sum rounds. The last rounding
is to y's type, to nearest. Scales by row and channel come out of the sum as in LLM.int8(), arXiv:2208.07339, section 2.
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

LIMIT = 127
# Of inputs: a product is 128 * 128 at most, and int32 holds 2^31 - 1.
MOST_INPUTS = (2**31 - 1) // (128 * 128)
SMALLEST_SCALE = 2.0**-40


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """float [R, K] -> int8 [R, K] and float32 [R], symmetric: a row's largest magnitude lies on step 127.

    Of activations the rows are tokens, of weights output channels. A row of zeros gets scale 1.
    """
    if values.dim() != 2 or not values.is_floating_point():
        raise InputError(f"values: got {values.dtype} {list(values.shape)}, allowed floats [R, K]")
    floats = values.float()
    largest = floats.abs().amax(1) if values.shape[1] else floats.new_zeros(len(floats))
    scales = largest / LIMIT
    scales = torch.where(scales < SMALLEST_SCALE, torch.ones_like(scales), scales)
    return torch.clamp(torch.round(floats / scales[:, None]), -LIMIT, LIMIT).to(torch.int8), scales


def multiply_w8a8(
    x: Tensor,
    weight: Tensor,
    row_scales: Tensor,
    column_scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """int8 [M, K], int8 [N, K], float32 [M], float32 [N], bf16 or float32 [N] -> `dtype` [M, N].

    Raises InputError for other types or shapes, and for more inputs than int32 sums exactly.
    """
    _expect(x, torch.int8, weight, column_scales, bias, dtype)
    expect("row_scales", row_scales, [torch.float32], [x.shape[0]])
    if x.shape[1] > MOST_INPUTS:
        raise InputError(f"x: got {x.shape[1]} inputs, allowed {MOST_INPUTS} at most, whose sum int32 holds")
    found: Tensor = call(W8A8, x, weight, row_scales, column_scales, bias, dtype)
    return found


def multiply_w8a16(
    x: Tensor,
    weight: Tensor,
    column_scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """bf16 [M, K], int8 [N, K], float32 [N], bf16 or float32 [N] -> `dtype` [M, N].

    Raises InputError for other types or shapes.
    """
    _expect(x, torch.bfloat16, weight, column_scales, bias, dtype)
    found: Tensor = call(W8A16, x, weight, None, column_scales, bias, dtype)
    return found


def _expect(
    x: Tensor, kind: torch.dtype, weight: Tensor, column_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> None:
    expect("x", x, [kind], ["M", "K"])
    expect("weight", weight, [torch.int8], ["N", x.shape[1]])
    expect("column_scales", column_scales, [torch.float32], [weight.shape[0]])
    expect_bias(bias, weight.shape[0])
    expect_output(dtype)


def _reference(
    x: Tensor, weight: Tensor, row_scales: Tensor | None, column_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if x.dtype == torch.int8:
        # float64 holds every sum that int32 does, and unlike int32 it has a matrix product on every device.
        total = (x.double() @ weight.double().T).to(torch.int32)
    else:
        total = x.float() @ weight.float().T
    return finish_reference(total, row_scales, column_scales, bias, dtype)


@triton.jit
def _multiply_kernel(
    x, weight, totals, row_scales, column_scales, bias, out, count, outputs,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    share: tl.constexpr = (WIDTH + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    first = tl.program_id(2) * share
    kind: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    total = tl.zeros([BLOCK_M, BLOCK_N], kind)
    for start in range(first, tl.minimum(first + share, WIDTH), BLOCK_K):
        along = start + tl.arange(0, BLOCK_K)
        a = load_rows(x, rows, along, count, WIDTH)
        w = load_rows(weight, columns, along, outputs, WIDTH)
        if kind == tl.int32:
            total = tl.dot(a, tl.trans(w), total, out_dtype=tl.int32)
        else:
            # Two's complement with its sign turned over is the value + 128.
            total = multiply(a, tl.trans(centred_bf16(w.to(tl.uint8, bitcast=True) ^ 0x80, 128)), total)
    if SPLITS == 1:
        finish_tile(total, row_scales, column_scales, bias, out, rows, columns, count, outputs, ROWS, COLUMNS, BIAS)
    else:
        store_total(total, totals, rows, columns, count, outputs)


W8A8_CONFIGS = (
    Config({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 256, "SPLITS": 4}, warps=4, stages=4),
    Config({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "SPLITS": 1}, warps=8, stages=3),
)
W8A16_CONFIGS = (
    Config({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "SPLITS": 4}, warps=4, stages=4),
    Config({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "SPLITS": 1}, warps=8, stages=3),
)


def _launch(
    x: Tensor, weight: Tensor, row_scales: Tensor | None, column_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    (count, width), outputs = x.shape, len(weight)
    configs = W8A8_CONFIGS if x.dtype == torch.int8 else W8A16_CONFIGS
    # Rows at odd addresses are read byte by byte, for which the large tile has too few registers.
    config = choose(configs, 0 if count <= FEW_ROWS or width % 16 else 1)

    def run(grid: tuple[int, int, int], totals: Tensor, *ends: Tensor, **flags: int) -> None:
        _multiply_kernel[grid](
            aligned(x), aligned(weight), totals, *ends, count, outputs, WIDTH=width, **flags,
            **config.constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    sums = torch.int32 if x.dtype == torch.int8 else torch.float32
    out = torch.empty(count, outputs, dtype=dtype, device=x.device)
    return launch_product(run, config, sums, (count, outputs), (row_scales, column_scales, bias), out)


def _cost(x: Tensor, weight: Tensor, *others: Any) -> Cost:
    """`others`: scales, bias and, at the end, the type of the result."""
    (count, width), outputs = x.shape, len(weight)
    operands = x.nbytes + weight.nbytes + sum(one.nbytes for one in others if isinstance(one, Tensor))
    moved = float(operands + count * outputs * others[-1].itemsize)
    return Cost(2.0 * count * outputs * width, moved, unit="int8" if x.dtype == torch.int8 else "bf16")


def _scene(count: int, outputs: int, width: int, biased: bool = False, seed: int = 0) -> tuple[Any, ...]:
    """x and weight int8, scales of rows and columns, bias."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (
        torch.randint(-128, 128, (size, width), generator=generator, dtype=torch.int8) for size in (count, outputs)
    )
    scales = (torch.rand(size, generator=generator) / 100 + 1e-3 for size in (count, outputs))
    return x, weight, *scales, torch.randn(outputs, generator=generator) if biased else None


EXACT = (0.0, "whole numbers, and two float32 products in one order")
ONE_STEP = (2.0**-7, "a value between two of bf16 may round to either: 2^-7 of it at most")


def _w8a8_examples() -> Sequence[Example]:
    full, half = torch.float32, torch.bfloat16
    extreme = torch.tensor([[-128], [127], [-127]], dtype=torch.int8).repeat(1, 1100)
    scales = torch.tensor([1.0, 0.3, 1e-9])
    return [
        Example("odd", (*_scene(5, 19, 37), full), *EXACT),
        Example("odd, in bf16", (*_scene(7, 21, 45), half), *EXACT),
        Example("more than a tile", (*_scene(130, 150, 144), full), *EXACT),
        Example("more columns and inputs than a tile", (*_scene(3, 70, 530), full), *EXACT),
        Example("one of each", (*_scene(1, 1, 1), full), *EXACT),
        Example("no rows", (*_scene(0, 5, 8), full), *EXACT),
        Example("no inputs", (*_scene(2, 3, 0), half), *EXACT),
        Example("sums beyond 2^24", (extreme, extreme, scales, scales, None, full), *EXACT),
        Example("bias", (*_scene(18, 20, 48, True), full), 2.0**-22, "product and sum may round as one: 1.5 steps"),
        Example("bias, in bf16", (*_scene(4, 20, 33, True), half), *ONE_STEP),
    ]


def _w8a16_examples() -> Sequence[Example]:
    def scene(count: int, outputs: int, width: int, biased: bool, dtype: torch.dtype) -> tuple[Any, ...]:
        x, weight, _, column_scales, bias = _scene(count, outputs, width, biased)
        real = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        return real, weight, None, column_scales, None if bias is None else bias.bfloat16(), dtype

    full, half = torch.float32, torch.bfloat16
    x, *rest = scene(6, 9, 40, False, full)
    return [
        Example("odd", scene(5, 19, 37, False, full)),
        Example("bias, many rows of odd width", scene(19, 18, 37, True, full)),
        Example("more than a tile", scene(130, 150, 144, True, full)),
        Example("more columns and inputs than a tile", scene(3, 70, 530, False, full)),
        Example("no rows", scene(0, 5, 8, False, half)),
        Example("no columns", scene(3, 0, 8, True, half)),
        Example("large values", (x * 1e30, *rest)),
        Example("in bf16", scene(4, 20, 33, True, half), *ONE_STEP),
    ]


def _w8a8_load(device: torch.device) -> tuple[Any, ...]:
    """Two thousand tokens of a prompt, a layer as wide as that of a model with 8 billion weights."""
    x, weight = (torch.randint(-127, 128, (size, 4096), device=device, dtype=torch.int8) for size in (2048, 4096))
    return x, weight, torch.rand(2048, device=device), torch.rand(4096, device=device), None, torch.bfloat16


def _w8a16_load(device: torch.device) -> tuple[Any, ...]:
    """Sixteen sequences that each decode a token."""
    weight = torch.randint(-127, 128, (14336, 4096), device=device, dtype=torch.int8)
    x = torch.randn(16, 4096, device=device, dtype=torch.bfloat16)
    return x, weight, None, torch.rand(14336, device=device), None, torch.bfloat16


def _entries(operand: str, total: str, rows: int, configs: Sequence[Config]) -> tuple[Entry, ...]:
    pointers = {"x": f"*{operand}", "weight": "*i8", "totals": f"*{total}"}
    ends = {"row_scales": "*fp32", "column_scales": "*fp32", "bias": "*bf16", "out": "*bf16"}
    flags = {"WIDTH": 4096, "ROWS": rows, "COLUMNS": 1, "BIAS": 1}
    made = tuple(Config({**one.constants, **flags}, one.warps, one.stages) for one in configs)
    return (
        Entry(_multiply_kernel, {**pointers, **ends, "count": "i32", "outputs": "i32"}, made),
        sum_entry(total, configs[0].constants["SPLITS"], rows, 1),
    )


W8A8 = Kernel(
    name="matmul-w8a8",
    formula="y[m, n] = r[m] c[n] sum_k x[m, k] w[n, k] + b[n], x and w int8",
    source="LLM.int8(), arXiv:2208.07339, section 2",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_w8a8_examples,
    load=_w8a8_load,
    entries=_entries("i8", "i32", 1, W8A8_CONFIGS),
)

W8A16 = Kernel(
    name="matmul-w8a16",
    formula="y[m, n] = c[n] sum_k x[m, k] w[n, k] + b[n], x bf16, w int8",
    source="LLM.int8(), arXiv:2208.07339, section 2",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_w8a16_examples,
    load=_w8a16_load,
    entries=_entries("bf16", "fp32", 0, W8A16_CONFIGS),
)
