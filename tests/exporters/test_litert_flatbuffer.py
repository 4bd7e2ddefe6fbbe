from __future__ import annotations

import numpy as np
import pytest

from edgekit.exporters.litert_flatbuffer import _integers


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_values_on_a_grid_are_recognised_with_their_axis(axis: int) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(-127, 128, (4, 3, 5, 6)).astype(np.int8)
    scale = generator.uniform(1e-4, 1e-1, values.shape[axis]).astype(np.float32)
    shape = [1] * 4
    shape[axis] = -1
    found = _integers(values * scale.reshape(shape), scale, axis)
    assert found is not None
    np.testing.assert_array_equal(found, values)


def test_values_off_the_grid_are_left_alone() -> None:
    values = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    assert _integers(values, np.full(4, 1e-2, np.float32), 0) is None


def test_a_grid_of_another_size_is_not_that_of_the_axis() -> None:
    assert _integers(np.zeros((4, 3), np.float32), np.ones(3, np.float32), 0) is None


def test_more_than_eight_bits_do_not_fit() -> None:
    assert _integers(np.array([[128.0]], np.float32), np.ones(1, np.float32), 0) is None
