"""MXFP4 weights: every code, the quantizer's own weights, what lies beyond float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import InputError
from edgekit.quantizers import mxfp4
from edgekit.runtimes.kernels.base import difference
from edgekit.runtimes.kernels.matmul_int4 import pack, unpack
from edgekit.runtimes.kernels.matmul_mxfp4 import MAGNITUDES, MXFP4, decode, multiply_mxfp4


def every_code() -> torch.Tensor:
    """Each of the 16 codes twice in a block."""
    return torch.arange(32, dtype=torch.uint8) % 16


def identity(size: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.eye(size) * scale).bfloat16()


def test_magnitudes_are_those_of_the_quantizer() -> None:
    assert MAGNITUDES == mxfp4.MAGNITUDES


def test_every_code_with_every_scale_decodes_as_the_quantizer_decodes_it() -> None:
    scales = torch.arange(255, dtype=torch.uint8)[:, None]
    codes = every_code().expand(255, 32)
    with np.errstate(over="ignore"):
        wanted = mxfp4.decode(codes.numpy(), scales.numpy())
    assert torch.equal(decode(pack(codes), scales), wanted)
    assert decode(pack(codes[:1]), torch.tensor([[255]], dtype=torch.uint8)).isnan().all()


@pytest.mark.parametrize("scale", [0, 1, 2, 126, 127, 128, 251, 252])
def test_the_kernel_reads_every_code_exactly(scale: int) -> None:
    """Rows of the identity, times a power of two that keeps products normal, return the weights."""
    packed, scales = pack(every_code()[None]), torch.tensor([[scale]], dtype=torch.uint8)
    balance = 2.0 ** max(-100, min(100, 127 - scale))
    got: Any = MXFP4.launch(identity(32, balance), packed, scales, None, torch.float32)
    assert torch.equal(got.T.double(), decode(packed, scales).double() * balance)
    assert got.count_nonzero() == 28  # but for plus and minus zero


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [253, 254, 255])
def test_infinite_weights_and_nan_stay_what_they_are(scale: int) -> None:
    packed, scales = pack(every_code()[None]), torch.tensor([[scale]], dtype=torch.uint8)
    ones = torch.tensor([[2.0**-100] * 32, [0.0] * 32]).bfloat16()
    arguments = (ones, packed, scales, None, torch.float32)
    assert difference(MXFP4.launch(*arguments), MXFP4.reference(*arguments)) == 0
    positive = pack(torch.full((1, 32), 7, dtype=torch.uint8))
    got: Any = MXFP4.launch(ones, positive, scales, None, torch.bfloat16)
    assert got[0].isinf().all() if scale < 255 else got[0].isnan().all()
    assert got[1].isnan().all()  # nothing times infinity


@pytest.mark.parametrize("count", [4, 18])
def test_layers_are_those_of_the_quantizer(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    weight = torch.randn(20, 96, generator=generator) * torch.logspace(-3, 3, 20)[:, None]
    x = torch.randn(count, 96, generator=generator).bfloat16()
    codes, scales = (torch.from_numpy(part) for part in mxfp4.encode(weight))
    packed = pack(codes)
    assert torch.equal(packed, torch.from_numpy(mxfp4.pack(codes.numpy()))) and torch.equal(unpack(packed), codes)
    wanted = x.float() @ mxfp4.decode(codes.numpy(), scales.numpy()).T
    got = multiply_mxfp4(x, packed, scales, dtype=torch.float32)
    assert difference(got, wanted) <= 1e-6
    assert difference(MXFP4.launch(x, packed, scales, None, torch.float32), wanted) <= 1e-6
    # What comes to 8 of a block's scale saturates at 6, what lies between 4 and 6 is 1 off: a quarter of the largest.
    blocks = weight.reshape(20, 3, 32)
    error = (decode(packed, scales).reshape(blocks.shape) - blocks).abs()
    assert (error <= blocks.abs().amax(2, keepdim=True) / 4).all()


def test_what_does_not_fit_is_refused() -> None:
    x, packed, scales = identity(64), torch.zeros(3, 32, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8)
    assert multiply_mxfp4(x, packed, scales).dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"x: got float16 \[64, 64\], allowed bfloat16 \[M, K\]"):
        multiply_mxfp4(x.half(), packed, scales)
    with pytest.raises(InputError, match="x: got 48 inputs, allowed multiples of 32"):
        multiply_mxfp4(x[:, :48], packed[:, :24], scales)
    with pytest.raises(InputError, match=r"packed: got uint8 \[3, 31\], allowed uint8 \[N, 32\]"):
        multiply_mxfp4(x, packed[:, :31], scales)
    with pytest.raises(InputError, match=r"scales: got uint8 \[3, 1\], allowed uint8 \[3, 2\]"):
        multiply_mxfp4(x, packed, scales[:, :1])
    with pytest.raises(InputError, match=r"bias: got float64 \[3\], allowed bfloat16 or float32 \[3\]"):
        multiply_mxfp4(x, packed, scales, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(InputError, match="output: got int8"):
        multiply_mxfp4(x, packed, scales, None, torch.int8)
    with pytest.raises(InputError, match="packed: got 17 bytes a row, allowed multiples of 16"):
        decode(packed[:, :17], scales[:, :1])
