from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.devices.device import load_device
from edgekit.errors import PlanError
from edgekit.model import Model
from edgekit.passes.partition.candidates import Layout, cuts
from edgekit.passes.partition.worthwhile import earliest_useful, worthwhile_cuts
from edgekit.planning.link import Link

PI, SERVER = load_device("raspberry-pi-4"), load_device("x86-server")


def test_the_earliest_useful_cut_sends_half_of_what_the_first_would(fashion: Model) -> None:
    cut = earliest_useful(fashion)
    assert cut.name == "features.5"
    assert 2 * cut.size_bytes <= cuts(fashion)[0].size_bytes


def test_where_running_whole_always_wins_only_the_earliest_useful_cut_is_left(fashion: Model) -> None:
    assert worthwhile_cuts(fashion, PI, SERVER, [Link(1, 80), Link(10, 80)]) == (earliest_useful(fashion),)


@pytest.mark.slow
def test_a_slow_device_gets_cuts_that_beat_the_earliest_somewhere() -> None:
    from edgekit.passes.base import Pipeline
    from edgekit.passes.capture import Capture
    from edgekit.passes.fold import FoldBatchNorm
    from edgekit.sources import resolve

    model = Pipeline([Capture(), FoldBatchNorm()])(resolve("efficientnet-lite0", calibration_samples=1))
    found = worthwhile_cuts(model, PI, SERVER)
    assert 2 <= len(found) <= 3 and earliest_useful(model) in found
    assert earliest_useful(model).head_parameters <= Layout.of(model).parameters(model.graph.graph.nodes) / 20
    assert list(found) == sorted(found, key=lambda cut: cut.head_flops)


def test_a_model_of_one_operator_has_no_cut(small: Callable[[str], Model]) -> None:
    import torch

    from .conftest import capture  # type: ignore[import-not-found]

    model = capture(torch.nn.Linear(4, 2), {"input": torch.randn(1, 4)})
    with pytest.raises(PlanError, match="no place to cut"):
        worthwhile_cuts(model, PI, SERVER)
