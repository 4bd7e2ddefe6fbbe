"""The queue: together what waits together, one by one the same answers, a bound, deadlines, and no loss."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgekit.errors import DeadlineError, OverloadedError, SessionError, UnreachableError
from edgekit.runtimes.server.batching import Batcher, Finished
from edgekit.runtimes.server.schedule import BatchOptions

WAIT_S = 10


class Model:
    """Doubles float rows; runs only while its gate is open, and remembers its batches."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.batches: list[int] = []
        self.gate.set()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        x = feeds["x"]
        if (x == -666).any():
            raise RuntimeError("poison")
        self.batches.append(len(x))
        return {"y": 2 * x}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


def row(value: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((1, width), value, np.float32)}


def waiting(batcher: Batcher, count: int) -> None:
    end = time.monotonic() + WAIT_S
    while batcher.depth < count and time.monotonic() < end:
        time.sleep(0.001)
    assert batcher.depth == count


def held(batcher: Batcher, model: Model, pool: ThreadPoolExecutor) -> None:
    """One request is inside the model, which waits for its gate."""
    model.gate.clear()
    pool.submit(batcher.infer, [row(0)])
    assert model.entered.acquire(timeout=WAIT_S)


def test_what_waits_together_runs_together(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True, BatchOptions(max_batch=4))
    held(batcher, model, pool)
    futures = [pool.submit(batcher.infer, [row(value)]) for value in range(6)]
    waiting(batcher, 6)
    model.gate.set()
    answers = [future.result(WAIT_S)[0].outputs["y"] for future in futures]
    assert [float(answer[0, 0]) for answer in answers] == [0, 2, 4, 6, 8, 10]
    assert model.batches == [1, 4, 2]
    batcher.close()


def test_only_what_has_one_shape_runs_together_and_nobody_starves(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True, BatchOptions(max_batch=8))
    held(batcher, model, pool)
    futures = []
    for number, width in enumerate([1, 2, 1, 2]):
        futures.append(pool.submit(batcher.infer, [row(number, width)]))
        waiting(batcher, number + 1)
    model.gate.set()
    assert [future.result(WAIT_S)[0].outputs["y"].tolist() for future in futures] == [[[0]], [[2, 2]], [[4]], [[6, 6]]]
    assert model.batches == [1, 2, 2]
    batcher.close()


def test_without_a_dynamic_batch_each_runs_alone(model: Model) -> None:
    batcher = Batcher("m", [[model]], False)
    answers = batcher.infer([row(1), row(2), row(3)])
    assert [float(answer.outputs["y"][0, 0]) for answer in answers] == [2, 4, 6]
    assert model.batches == [1, 1, 1]
    batcher.close()


def test_a_delay_gathers_rows_until_the_batch_is_full(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True, BatchOptions(max_batch=3, max_delay_ms=1000 * WAIT_S))
    futures = [pool.submit(batcher.infer, [row(value)]) for value in range(3)]
    assert sorted(float(future.result(WAIT_S / 2)[0].outputs["y"][0, 0]) for future in futures) == [0, 2, 4]
    assert model.batches == [3]
    batcher.close()


def test_a_full_queue_refuses_and_says_when_to_come_back(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True, BatchOptions(queue=2))
    held(batcher, model, pool)
    futures = [pool.submit(batcher.infer, [row(value)]) for value in range(2)]
    waiting(batcher, 2)
    with pytest.raises(OverloadedError, match="2 wait, allowed 2"):
        batcher.infer([row(9)])
    model.gate.set()
    assert all(future.result(WAIT_S) for future in futures)
    batcher.close()


def test_a_passed_deadline_is_dropped_before_any_work(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True)
    held(batcher, model, pool)
    with pytest.raises(DeadlineError):
        batcher.infer([row(5)], time.monotonic() + 0.02)
    model.gate.set()
    batcher.close()
    assert model.batches == [1]


def test_a_poisoned_request_fails_alone(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True)
    held(batcher, model, pool)
    futures = [pool.submit(batcher.infer, [row(value)]) for value in (1, -666, 3)]
    waiting(batcher, 3)
    model.gate.set()
    assert float(futures[0].result(WAIT_S)[0].outputs["y"][0, 0]) == 2
    with pytest.raises(SessionError, match="poison"):
        futures[1].result(WAIT_S)
    assert float(futures[2].result(WAIT_S)[0].outputs["y"][0, 0]) == 6
    batcher.close()


def test_a_model_that_does_not_keep_the_batch_still_answers_each_alone(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[lambda feeds: {"y": model(feeds)["y"][:1]}]], True)
    held(batcher, model, pool)
    futures = [pool.submit(batcher.infer, [row(value)]) for value in (1, 2)]
    waiting(batcher, 2)
    model.gate.set()
    assert [float(future.result(WAIT_S)[0].outputs["y"][0, 0]) for future in futures] == [2, 4]
    batcher.close()


def test_closing_finishes_what_waits_and_refuses_the_rest(model: Model, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher("m", [[model]], True, BatchOptions(max_batch=2))
    held(batcher, model, pool)
    futures = [pool.submit(batcher.infer, [row(value)]) for value in range(5)]
    waiting(batcher, 5)
    closing = pool.submit(batcher.close)
    model.gate.set()
    closing.result(WAIT_S)
    assert all(future.done() or future.result(WAIT_S) for future in futures)
    assert sum(model.batches) == 6
    with pytest.raises(UnreachableError):
        batcher.infer([row(1)])


def test_many_callers_each_get_their_own_answer(model: Model, pool: ThreadPoolExecutor) -> None:
    seen: list[Finished] = []
    batcher = Batcher("m", [[model]], True, BatchOptions(max_batch=7, queue=10_000), seen.append)
    values = list(range(2000))
    answers = list(pool.map(lambda value: float(batcher.infer([row(value)])[0].outputs["y"][0, 0]), values))
    batcher.close()
    assert answers == [2.0 * value for value in values]
    assert sum(batch.rows for batch in seen) == sum(model.batches) == 2000
