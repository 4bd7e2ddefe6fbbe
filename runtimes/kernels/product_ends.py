"""What the matrix products share: exact bf16 operands, the end of a tile, sums split along K.

    y[m, n] = round(r[m] * c[n] * total[m, n] + b[n])      total: int32 or float32 [M, N]; r [M], c [N], b [N]: optional

`total` becomes float32, each factor is a float32 product of its own, in the order above from the left:
(total * r) * c + b. The last rounding, to bf16, is to nearest with ties to even. With few rows K is split between
programs; their totals lie in memory as [S, M, N] and are added in the order of s: no atomics, the same bits at every
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import InputError
from edgekit.runtimes.kernels.base import Config, Entry
from edgekit.runtimes.kernels.tiles import narrow

OUTPUTS = (torch.bfloat16, torch.float32)
# Decoding brings one row for each sequence. A tile of 16 holds as many; for more it would read the weights again.
FEW_ROWS = 16
SUM_CONFIG = Config({"BLOCK_N": 256}, warps=4, stages=1)

Shape = Sequence[int | str]


def expect(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: Shape) -> None:
    """Raises InputError where `tensor` has none of `dtypes`, or another shape. A name in `shape` is any size."""
    fits = len(tensor.shape) == len(shape) and all(
        isinstance(wanted, str) or got == wanted for got, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype in dtypes and fits:
        return
    allowed = f"{' or '.join(_dtype_text(one) for one in dtypes)} [{', '.join(map(str, shape))}]"
    got = f"{_dtype_text(tensor.dtype)} [{', '.join(map(str, tensor.shape))}]"
    raise InputError(f"{name}: got {got}, allowed {allowed}")


def expect_output(dtype: torch.dtype) -> None:
    """Raises InputError for a type that no tile is rounded to."""
    if dtype not in OUTPUTS:
        raise InputError(f"output: got {_dtype_text(dtype)}, allowed {' or '.join(map(_dtype_text, OUTPUTS))}")


def expect_bias(bias: Tensor | None, outputs: int) -> None:
    if bias is not None:
        expect("bias", bias, OUTPUTS, [outputs])


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finish_reference(
    total: Tensor, rows: Tensor | None, columns: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    value = total.float()
    if rows is not None:
        value = value * rows[:, None]
    if columns is not None:
        value = value * columns
    if bias is not None:
        value = value + bias.float()
    return value.to(dtype)


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that is a multiple of 16 bytes, as the kernels tell the compiler with `multiple_of`."""
    whole = tensor.contiguous()
    return whole if whole.data_ptr() % 16 == 0 else whole.clone()


@triton.jit
def load_rows(matrix, rows, along, count, WIDTH: tl.constexpr):
    """A tile of a matrix [count, WIDTH] that `aligned` returned; 0 outside."""
    places = matrix + rows[:, None].to(tl.int64) * WIDTH + along[None, :]
    if WIDTH % 16 == 0:
        places = tl.multiple_of(places, (16, 16))
    return tl.load(places, mask=(rows < count)[:, None] & (along < WIDTH)[None, :], other=0)


@triton.jit
def exact_bf16(value):
    """float32 that bf16 holds exactly -> bf16: the upper half of its bits."""
    return (value.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def centred_bf16(codes, zero):
    """uint8 codes less `zero`, a whole number, as bf16. Or-ed into the last bits of 2^23 a code is a float without the
    slow conversion; the difference fits 8 bits, which bf16 holds."""
    shifted = (codes.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True)
    return exact_bf16(shifted - (8388608.0 + zero))


@triton.jit
def finish_tile(
    total, row_scales, column_scales, bias, out, rows, columns, count, outputs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """`rows`, `columns`: the indices of the tile; ROWS, COLUMNS, BIAS: whether there are such operands."""
    value = total.to(tl.float32)
    if ROWS:
        value = value * tl.load(row_scales + rows, mask=rows < count, other=0.0)[:, None]
    if COLUMNS:
        value = value * tl.load(column_scales + columns, mask=columns < outputs, other=0.0)[None, :]
    if BIAS:
        value = value + tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    value = narrow(value, out.dtype.element_ty)
    inside = (rows < count)[:, None] & (columns < outputs)[None, :]
    tl.store(out + rows[:, None].to(tl.int64) * outputs + columns[None, :], value, mask=inside)


@triton.jit
def store_total(total, totals, rows, columns, count, outputs):
    """One split's total into its place of [S, M, N]."""
    place = tl.program_id(2).to(tl.int64) * count * outputs
    inside = (rows < count)[:, None] & (columns < outputs)[None, :]
    tl.store(totals + place + rows[:, None].to(tl.int64) * outputs + columns[None, :], total, mask=inside)


@triton.jit
def _sum_splits_kernel(
    totals, row_scales, column_scales, bias, out, count, outputs,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) + tl.arange(0, 1)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = totals + rows[:, None].to(tl.int64) * outputs + columns[None, :]
    inside = (columns < outputs)[None, :]
    total = tl.load(place, mask=inside, other=0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(place + tl.cast(count, tl.int64) * outputs * split, mask=inside, other=0)
    finish_tile(total, row_scales, column_scales, bias, out, rows, columns, count, outputs, ROWS, COLUMNS, BIAS)


def launch_product(
    run: Callable[..., None],
    config: Config,
    total_type: torch.dtype,
    shape: tuple[int, int],
    ends: tuple[Tensor | None, Tensor | None, Tensor | None],
    out: Tensor,
) -> Tensor:
    """`run(grid, totals, row_scales, column_scales, bias, out, **flags)` for every tile of `out` [M, N] and split of K,
    then the sum of the splits. `ends`: row scales, column scales, bias; `out` stands for one that is None."""
    count, outputs = shape
    if not count or not outputs:
        return out
    splits = config.constants["SPLITS"]
    flags = {name: int(one is not None) for name, one in zip(("ROWS", "COLUMNS", "BIAS"), ends, strict=True)}
    operands = [out if one is None else one.contiguous() for one in ends]
    grid = (
        triton.cdiv(count, config.constants["BLOCK_M"]),
        triton.cdiv(outputs, config.constants["BLOCK_N"]),
        splits,
    )
    totals = out if splits == 1 else torch.empty(splits, count, outputs, dtype=total_type, device=out.device)
    run(grid, totals, *operands, out, **flags)
    if splits > 1:
        _sum_splits_kernel[(count, triton.cdiv(outputs, SUM_CONFIG.constants["BLOCK_N"]))](
            totals, *operands, out, count, outputs,
            SPLITS=splits, **flags, **SUM_CONFIG.constants, num_warps=SUM_CONFIG.warps, num_stages=SUM_CONFIG.stages,
        )  # fmt: skip
    return out


def sum_entry(total_type: str, splits: int, rows: int, columns: int) -> Entry:
    """The sum of `splits` totals for a kernel with (1) or without (0) scales of rows and columns, and with a bias."""
    pointers = {"row_scales": "*fp32", "column_scales": "*fp32", "bias": "*bf16", "out": "*bf16"}
    flags = {"SPLITS": splits, "ROWS": rows, "COLUMNS": columns, "BIAS": 1}
    config = Config({**SUM_CONFIG.constants, **flags}, SUM_CONFIG.warps, SUM_CONFIG.stages)
    return Entry(
        _sum_splits_kernel, {"totals": f"*{total_type}", **pointers, "count": "i32", "outputs": "i32"}, (config,)
    )
