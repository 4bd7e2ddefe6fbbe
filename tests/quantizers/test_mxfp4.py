from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from edgekit.devices.device import load_device
from edgekit.errors import SourceError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.parity import run_session
from edgekit.quantizers.mxfp4 import BLOCK, VALUES, Mxfp4, decode, encode, pack, unpack
from edgekit.quantizers.quantize import simulate
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.report.metrics import sqnr_db

from .conftest import captured


def test_codes_are_the_formats_table() -> None:
    """Table 5 of the specification, as another implementation of E2M1 has it."""
    theirs = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(VALUES, theirs)
    assert np.signbit(VALUES[8])


def test_every_code_under_every_scale_comes_back() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), 2)[None].repeat(253, 0)
    scales = np.arange(253, dtype=np.uint8)[:, None]  # 6 x 2^126 and beyond is no float32
    values = decode(codes, scales)
    assert values.isfinite().all()
    again = encode(values)
    np.testing.assert_array_equal(again[0], codes)
    np.testing.assert_array_equal(again[1], scales)


def test_elements_round_to_nearest_even_as_the_reference_does() -> None:
    generator = np.random.default_rng(0)
    block = np.concatenate([[4.0], generator.uniform(-6, 6, 9), np.arange(-5.25, 5.5, 0.5)]).astype(np.float32)[:BLOCK]
    codes, scales = encode(torch.from_numpy(block))
    assert scales.tolist() == [127]
    np.testing.assert_array_equal(
        decode(codes, scales).numpy(), block.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    )


def test_scale_is_a_power_of_two_and_the_largest_saturates() -> None:
    block = torch.zeros(2, BLOCK)
    block[0, 3], block[1, 0] = 7.9, -0.013
    codes, scales = encode(block)
    assert scales[0, 0] == 127 and decode(codes, scales)[0, 3] == 6.0
    assert np.exp2(scales[1, 0] - 127.0) == 2.0 ** (np.floor(np.log2(0.013)) - 2)


def test_zeros_stay_zeros_and_nan_is_refused() -> None:
    assert not decode(*encode(torch.zeros(3, 64))).any()
    with pytest.raises(ValueError, match="NaN"):
        encode(torch.full((1, BLOCK), float("nan")))


def test_two_codes_share_a_byte() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (5, 96), dtype=np.uint8)
    packed = pack(codes)
    assert packed.nbytes * 2 == codes.nbytes and packed[0, 0] & 15 == codes[0, 0]
    np.testing.assert_array_equal(unpack(packed), codes)


def test_the_file_holds_four_and_a_quarter_bits_and_runs(transformer: Model, tmp_path: Path) -> None:
    model = Mxfp4(ONNX_X86)(transformer)
    artifact = OnnxExporter().export(model, tmp_path, load_device("x86-server"))
    proto = onnx.load(artifact.path)
    stored = {
        one.name: int(np.prod(one.dims)) for one in proto.graph.initializer if one.data_type == onnx.TensorProto.UINT8
    }
    weights = 2 * 2 * 32 * 64
    taken = sum(size for name, size in stored.items() if name.endswith(("_mxfp4", "_e8m0")))
    assert taken * 8 == 4.25 * weights
    assert not any(
        one.data_type == onnx.TensorProto.FLOAT and np.prod(one.dims) >= 32 * 64 for one in proto.graph.initializer
    )
    assert len(proto.graph.input) == 1
    with artifact.open(model) as session:
        answers = run_session(session, model.held_out)["y"]
    wanted = np.concatenate([model.forward(sample)["y"].numpy() for sample in model.held_out])
    assert sqnr_db(wanted, answers) > 100  # the decoder is exact; float32 products are added in another order
    exact = np.concatenate([transformer.forward(sample)["y"].numpy() for sample in model.held_out])
    assert 15 < sqnr_db(exact, answers) < 60


def test_the_simulation_has_the_same_weights(transformer: Model) -> None:
    model = Mxfp4(ONNX_X86)(transformer)
    for sample in model.held_out[:2]:
        torch.testing.assert_close(
            simulate(model).forward(sample)["y"], model.forward(sample)["y"], rtol=1e-5, atol=1e-6
        )


def test_widths_that_no_block_divides_stay_float() -> None:
    model = captured(torch.nn.Sequential(torch.nn.Linear(32, 12), torch.nn.Linear(12, 4)), torch.randn(2, 32), "odd")
    record = Mxfp4(ONNX_X86)(model).quantization
    assert record is not None and record.layers == ("linear",)
    assert "no multiple" in record.fallbacks[0].why
    narrow = captured(torch.nn.Linear(12, 4), torch.randn(2, 12), "narrow")
    with pytest.raises(SourceError, match="no linear layer"):
        Mxfp4(ONNX_X86)(narrow)
