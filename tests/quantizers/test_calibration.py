from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import DataError, NumericsError
from edgekit.model import Model
from edgekit.quantizers.calibration import calibrate

from .conftest import captured


def first_input(model: Model) -> str:
    return next(node.name for node in model.graph.graph.nodes if node.op == "placeholder")


def test_extremes_and_histogram_are_those_of_all_samples_together() -> None:
    model = captured(nn.ReLU(), torch.randn(1, 7, 9), "relu")
    values = np.concatenate([sample["x"].numpy().ravel() for sample in model.calibration])
    statistics = calibrate(model)
    seen = statistics.seen[first_input(model)]
    assert statistics.samples == len(model.calibration)
    assert (seen.minimum, seen.maximum) == (values.min(), values.max())
    assert seen.counts.sum() == values.size
    mean = (seen.counts * seen.centres).sum() / values.size
    assert mean == pytest.approx(values.mean(), abs=(seen.maximum - seen.minimum) / len(seen.counts))
    assert statistics.seen["relu"].minimum == 0.0


def test_large_activations_are_drawn_evenly_but_keep_their_extremes() -> None:
    model = captured(nn.ReLU(), torch.randn(1, 300, 300), "relu", samples=2)
    seen = calibrate(model).seen[first_input(model)]
    assert seen.maximum == max(float(sample["x"].max()) for sample in model.calibration)
    assert 2 * 10_000 <= seen.counts.sum() <= 2 * 40_000


def test_the_same_graph_and_data_are_run_once(convnet: Model) -> None:
    assert calibrate(convnet) is calibrate(convnet)
    assert calibrate(convnet) is not calibrate(replace(convnet, calibration=convnet.calibration[:2]))


def test_constants_have_a_histogram_too() -> None:
    model = captured(nn.Threshold(1e9, 2.0), torch.randn(1, 4), "constant")
    seen = next(seen for name, seen in calibrate(model).seen.items() if name != first_input(model))
    assert (seen.minimum, seen.maximum, seen.counts.sum()) == (2.0, 2.0, 4 * len(model.calibration))


def test_no_data_and_nan_are_errors(convnet: Model) -> None:
    with pytest.raises(DataError, match="no samples"):
        calibrate(replace(convnet, calibration=()))
    broken = tuple({"x": torch.full_like(sample["x"], float("nan"))} for sample in convnet.calibration[:1])
    with pytest.raises(NumericsError, match="holds NaN"):
        calibrate(replace(convnet, calibration=broken))
