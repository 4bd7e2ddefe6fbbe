"""Products with quantized weights as operators of a torch graph, so that AOTInductor can compile around them.

    edgekit::linear_w8a8     x [.., K] floats, int8 [N, K], float32 [N], bias [N]        -> x's type [.., N]
    edgekit::linear_w4a16    x [.., K] bf16, uint8 [N, K / 2], bf16 [N, K / group], bias -> bf16 [.., N]

On CUDA they are our Triton kernels (`runtimes/kernels`), elsewhere the references of those. W8A8 quantizes each row of
`x` by its own largest magnitude. On the processor torch's int8 product takes the place of the reference, which has the
same whole numbers in it: it is tried once on sums that an instruction set without VNNI would saturate. On the processor
both are there to give the GPU's answers, not to be fast: each call crosses into Python, and W4A16 unpacks its weights.

Compiled code calls them through torch's dispatcher, so that the process has to have imported this module.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from edgekit.errors import MissingExtraError

try:
    from edgekit.runtimes.kernels import matmul_int4, matmul_int8
    from edgekit.runtimes.kernels.product_ends import finish_reference
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise MissingExtraError("triton", "kernels", "int8 and w4a16 on the torch engine") from error


@torch.library.custom_op("edgekit::linear_w8a8", mutates_args=())
def linear_w8a8(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    codes, row_scales = matmul_int8.quantize_rows(rows)
    # The kernels round to bf16 or float32; float16 is rounded from the latter.
    dtype = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    if x.device.type == "cpu" and int_mm_is_exact():
        total = torch._int_mm(codes, weight.t())
        product = finish_reference(total, row_scales, scales, bias, dtype)
    else:
        product = matmul_int8.multiply_w8a8(codes, weight, row_scales, scales, bias, dtype)
    return product.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("edgekit::linear_w4a16", mutates_args=())
def linear_w4a16(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    product = matmul_int4.multiply_w4a16(rows, packed, scales, None, bias, torch.bfloat16)
    return product.reshape(*x.shape[:-1], packed.shape[0])


@linear_w8a8.register_fake
@linear_w4a16.register_fake
def _shape(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@cache
def int_mm_is_exact() -> bool:
    """Whether torch's int8 product on this processor gives the whole numbers of the reference, extremes included."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, (size, 67), generator=generator, dtype=torch.int8) for size in (5, 19))
    x[0], weight[0] = 127, 127
    x[1], weight[1] = -127, -127
    try:
        found = torch._int_mm(x, weight.t())
    except RuntimeError:  # this build of torch has none for the processor
        return False
    return torch.equal(found, (x.long() @ weight.long().T).int())
