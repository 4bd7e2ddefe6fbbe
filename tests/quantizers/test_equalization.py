from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.equalization import EqualizeLayers, find_pairs


def test_equalized_network_is_the_same_function_on_calibration_data(convnet: Model) -> None:
    folded = FoldBatchNorm()(convnet)
    equal = EqualizeLayers()(folded)
    for sample in convnet.calibration:
        np.testing.assert_allclose(equal.forward(sample)["y"], folded.forward(sample)["y"], rtol=1e-4, atol=1e-5)


def test_pairs_are_those_with_nothing_but_a_clip_between(convnet: Model) -> None:
    names = [(first.node.name, second.node.name) for first, second in find_pairs(FoldBatchNorm()(convnet).graph)]
    assert names == [("conv2d_1", "conv2d_2"), ("conv2d_2", "conv2d_3")]


def test_clipped_pairs_stay_without_calibration_data(convnet: Model) -> None:
    folded = replace(FoldBatchNorm()(convnet), calibration=())
    assert EqualizeLayers()(folded).history[-1].detail == "0 pairs of layers"
