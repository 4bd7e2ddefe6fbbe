from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.bundle.manifest import Preprocess
from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.passes.layout import TakeChannelsLast


def net() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = tuple({"image": torch.rand(1, 3, 8, 6)} for _ in range(8))
    return Model(
        "net",
        module,
        data[0],
        dynamic={"image": {0: "batch"}},
        calibration=data,
        preprocess=Preprocess(resize=8, crop=8, mean=(0.0,) * 3, std=(255.0,) * 3),
    )


def test_channels_last_computes_the_same_from_the_turned_image() -> None:
    model = Capture()(net())
    turned = TakeChannelsLast()(model)
    assert turned.input_specs[0].shape == ("batch", 8, 6, 3)
    assert isinstance(turned.preprocess, Preprocess)
    assert turned.preprocess.layout == "NHWC"
    image = torch.rand(2, 3, 8, 6)
    expected = model.forward({"image": image})["output"]
    # another memory layout takes another convolution kernel, which adds in another order
    torch.testing.assert_close(turned.forward({"image": image.permute(0, 2, 3, 1).contiguous()})["output"], expected)
    assert model.input_specs[0].shape == ("batch", 3, 8, 6)


def test_a_model_without_images_is_refused() -> None:
    model = Capture()(Model("linear", nn.Linear(2, 2), {"x": torch.rand(1, 2)}))
    with pytest.raises(UsageError, match="no image input"):
        TakeChannelsLast()(model)


@pytest.mark.parametrize("format", ["litert", "onnx"])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_bundle_takes_channels_last(format: str, quantize: str, tmp_path: Path) -> None:
    plain = net()
    bundle = edgekit.export(
        plain, device="x86-server", format=format, quantize=quantize, channels_last=True, max_drop=5.0,
        output=str(tmp_path / "net.edgekit"),
    )  # fmt: skip
    image = plain.calibration[0]["image"]
    with edgekit.load(bundle) as session:
        assert session.inputs[0].shape[1:] == (8, 6, 3)
        got = session.run({"image": image.permute(0, 2, 3, 1).contiguous().numpy()})["output"]
    expected = plain.module(image).detach().numpy()
    # float: another order of additions; int8: a few steps of a range of about one
    np.testing.assert_allclose(got, expected, atol=1e-5 if quantize == "none" else 0.05)
