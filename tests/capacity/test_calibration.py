from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.capacity.calibration import batch_sizes, is_batchable, measure_service, noise_rows, pinned
from edgekit.capacity.probe import Cores
from edgekit.tensors import TensorSpec
from tests.capacity.conftest import make_whole


def test_sizes_are_powers_of_two_and_the_most(whole_bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(whole_bundle) as bundle:
        part = bundle.manifest.part()
        assert is_batchable(part)
        assert batch_sizes(part, 1) == [1]
        assert batch_sizes(part, 16) == [1, 2, 4, 8, 16]
        assert batch_sizes(part, 12) == [1, 2, 4, 8, 12]
    with Bundle.open(make_whole(tmp_path / "fixed.edgekit", batch=1)) as bundle:
        assert batch_sizes(bundle.manifest.part(), 16) == [1]


def test_noise_fits_the_inputs() -> None:
    specs = [TensorSpec("x", "float32", ("batch", 3, "length")), TensorSpec("ids", "int64", (1, 2))]
    found = noise_rows(specs, 5)
    assert found["x"].shape == (5, 3, 1) and found["x"].dtype == np.float32
    assert found["ids"].shape == (1, 2) and set(found["ids"].ravel()) <= {0, 1}


def test_the_real_session_is_timed_and_the_fit_tells_how_well(whole_bundle: Path) -> None:
    with Bundle.open(whole_bundle) as bundle:
        part = bundle.manifest.part()
        found = measure_service(bundle, part, [1, 4, 16], 1, seconds=0.2)
    assert [rows for rows, _ in found.residuals] == [1, 4, 16]
    assert 0 < found.seconds(1) <= found.seconds(16)
    assert np.median(found.jitter) == pytest.approx(1, abs=0.3)
    assert "measured on this machine" in found.origin and "1 thread" in found.origin


def test_a_part_of_fixed_batch_costs_its_one_time(tmp_path: Path) -> None:
    with Bundle.open(make_whole(tmp_path / "fixed.edgekit", batch=1)) as bundle:
        found = measure_service(bundle, bundle.manifest.part(), [1], 1, seconds=0.1)
    assert found.seconds(3) == pytest.approx(3 * found.seconds(1))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads to cores")
def test_pinning_ends_with_the_context() -> None:
    before = os.sched_getaffinity(0)
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with pinned(()):
        assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads to cores")
def test_node_and_client_are_kept_apart_where_there_are_two_cores() -> None:
    mine = os.sched_getaffinity(0)
    for wanted in (1, 2, 300):
        found = Cores.divide(wanted)
        assert set(found.node) <= mine and set(found.client) <= mine and found.node and found.client
        assert found.apart == (len(mine) > 1)
        if found.apart:
            assert len(found.node) == min(wanted, len(mine) - 1)
    with pinned([min(mine)]):
        alone = Cores.divide()
        assert alone.node == alone.client == (min(mine),) and not alone.apart
