from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CodecError, InputError
from edgekit.runtimes.codecs.key_value import KeyValueMemory, softmax
from edgekit.runtimes.codecs.tables import write_tables

BOOKS, KEYS, WIDTH = 4, 5, 3


def _memory(seed: int = 0) -> KeyValueMemory:
    return KeyValueMemory(np.random.default_rng(seed).standard_normal((BOOKS, KEYS, WIDTH)).astype(np.float32))


def _indices(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, KEYS, (BOOKS, count))


def test_reading_is_the_mean_of_the_rows_that_the_indices_name():
    memory, indices = _memory(), _indices(6)
    for sample, read in enumerate(memory.read(indices)):
        assert np.allclose(read, np.mean([memory.values[b, indices[b, sample]] for b in range(BOOKS)], axis=0))
    assert np.allclose(memory.read(indices[:2]), (memory.values[0, indices[0]] + memory.values[1, indices[1]]) / 2)
    assert memory.read(indices[:, :0]).shape == (0, WIDTH)


def test_an_update_moves_rows_by_the_mean_gradient_of_their_readers_and_no_other_row():
    memory, indices = _memory(), np.array([[0, 0, 2], [1, 3, 3]])
    gradient = np.arange(9, dtype=np.float32).reshape(3, 3)
    moved = memory.update(indices, gradient, 0.5).values
    expected = memory.values.copy()
    expected[0, 0] -= 0.5 * (gradient[0] + gradient[1]) / 2
    expected[0, 2] -= 0.5 * gradient[2]
    expected[1, 1] -= 0.5 * gradient[0]
    expected[1, 3] -= 0.5 * (gradient[1] + gradient[2]) / 2
    assert np.allclose(moved, expected, atol=1e-6)


def test_labels_descend_the_cross_entropy_of_what_is_read():
    """The gradient of the loss with respect to a row is the reader's over the number of codebooks: checked by
    differences."""
    memory, indices, label = _memory(), _indices(1), np.array([2])

    def loss(values: np.ndarray) -> float:
        return -float(np.log(softmax(KeyValueMemory(values).read(indices))[0, 2]))

    moved = memory.values - memory.update(indices, label, 1.0).values
    for book in range(BOOKS):
        for column in range(WIDTH):
            up, down = memory.values.copy(), memory.values.copy()
            up[book, indices[book, 0], column] += 1e-2
            down[book, indices[book, 0], column] -= 1e-2
            slope = (loss(up) - loss(down)) / 2e-2
            assert moved[book, indices[book, 0], column] == pytest.approx(BOOKS * slope, abs=2e-3)


def test_answers_that_share_no_row_stay_to_the_last_bit():
    memory = _memory()
    mine, others = np.zeros((BOOKS, 8), np.int64), np.ones((BOOKS, 3), np.int64)
    updated = memory
    for _ in range(20):
        updated = updated.update(mine, np.full(8, 1), 1.0)
    assert updated.read(mine).argmax(1).tolist() == [1] * 8
    assert np.array_equal(updated.read(others), memory.read(others))
    assert np.array_equal(memory.values, _memory().values)


def test_a_saved_memory_is_loaded_bit_by_bit():
    memory = _memory()
    assert np.array_equal(KeyValueMemory.load(memory.save()).values, memory.values)
    for damaged in (
        None,
        b"",
        memory.save()[:-1],
        write_tables("key-value", {}, {"values": np.zeros((2, 2), np.float32)}),
        write_tables("key-value", {}, {"values": np.zeros((0, 2, 2), np.float32)}),
        write_tables("key-value", {}, {"values": np.zeros((1, 2, 2), np.float32), "more": np.zeros(1, np.float32)}),
    ):
        with pytest.raises(CodecError):
            KeyValueMemory.load(damaged)


@pytest.mark.parametrize(
    ("indices", "target"),
    [
        (np.full((BOOKS, 2), KEYS), np.zeros(2, np.int64)),
        (np.full((BOOKS, 2), -1), np.zeros(2, np.int64)),
        (np.zeros((BOOKS + 1, 2), np.int64), np.zeros(2, np.int64)),
        (np.zeros((BOOKS, 2)), np.zeros(2, np.int64)),
        (np.zeros((BOOKS, 2), np.int64), np.array([0, WIDTH])),
        (np.zeros((BOOKS, 2), np.int64), np.array([0])),
        (np.zeros((BOOKS, 2), np.int64), np.zeros((2, WIDTH + 1), np.float32)),
        (np.zeros((BOOKS, 2), np.int64), np.full((2, WIDTH), np.nan, np.float32)),
    ],
)
def test_indices_and_targets_that_do_not_fit_are_refused(indices, target):
    with pytest.raises(InputError):
        _memory().update(indices, target, 1.0)
