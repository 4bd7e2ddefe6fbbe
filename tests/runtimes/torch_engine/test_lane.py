"""Batches on their way: buckets, padding, slots that come round again, and what waits for what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from edgekit.errors import UsageError
from edgekit.runtimes.torch_engine.buckets import bucket_of, buckets_up_to
from edgekit.runtimes.torch_engine.lane import SLOTS, Lane
from edgekit.runtimes.torch_engine.runner import EagerRunner
from edgekit.runtimes.torch_engine.streams import Processor, Replay
from edgekit.tensors import TensorSpec

INPUTS = (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("ids", "int64", ("batch",)))
OUTPUTS = (TensorSpec("y", "float32", ("batch", 3)), TensorSpec("next", "int64", ("batch",)))


class Net(nn.Module):
    """No row's answer depends on another row; 1 / x is infinite where padding would hold zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.table = nn.Linear(4, 3), nn.Embedding(9, 3)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.project(1 / x) + self.table(ids), ids + 1


def feeds(rows: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.random((rows, 4), np.float32) + 0.5, generator.integers(0, 9, rows)]


class Counted(EagerRunner):
    """Remembers the batch sizes that reached the net, and what was in them."""

    def __init__(self) -> None:
        net: GraphModule = symbolic_trace(Net().eval())
        super().__init__(lambda: net, torch.device("cpu"))
        self.seen: list[list[Tensor]] = []
        self.upload()

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self.seen.append([value.clone() for value in tensors])
        return super().run(tensors)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def runner() -> Counted:
    return Counted()


def lane(runner: Counted, buckets: Sequence[int] = (1, 2, 4), engine: Any = None) -> Lane:
    return Lane(runner, INPUTS, OUTPUTS, buckets, engine or Processor())


def expected(given: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [value.numpy() for value in Net().eval()(*(torch.from_numpy(array) for array in given))]


def same(found: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> None:
    """A product of another batch size may sum in another order: 4 terms, a few ulp of values below 4."""
    for one, other in zip(found, expected(given), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=16 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(("most", "wanted"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))])
def test_buckets_are_powers_of_two_and_the_largest_batch(most: int, wanted: tuple[int, ...]) -> None:
    assert buckets_up_to(most) == wanted


def test_no_batches_are_a_usage_error() -> None:
    with pytest.raises(UsageError):
        buckets_up_to(0)


def test_a_batch_takes_the_smallest_bucket_that_holds_it() -> None:
    buckets = buckets_up_to(12)
    for rows in range(13):
        size = bucket_of(buckets, rows)
        assert size >= rows and not [other for other in buckets if rows <= other < size]


@pytest.mark.parametrize("rows", range(1, 14))
def test_any_number_of_rows_gives_the_nets_answers(rows: int, runner: Counted) -> None:
    given = feeds(rows)
    same(lane(runner).run(given), given)
    sizes = [len(tensors[0]) for tensors in runner.seen]
    assert set(sizes) <= {1, 2, 4} and sum(sizes) < rows + 4


def test_no_rows_give_no_rows(runner: Counted) -> None:
    found = lane(runner).run(feeds(0))
    assert [(array.shape, str(array.dtype)) for array in found] == [((0, 3), "float32"), ((0,), "int64")]


def test_padding_repeats_the_first_row(runner: Counted) -> None:
    given = feeds(3)
    lane(runner).run(given)
    x, ids = runner.seen[-1]
    assert len(x) == 4
    assert torch.equal(x[3], torch.from_numpy(given[0][0])) and int(ids[3]) == given[1][0]


def test_what_an_earlier_batch_left_reaches_no_later_one(runner: Counted) -> None:
    made = lane(runner, (4,))
    made.run(feeds(4, seed=1))
    made.run(feeds(4, seed=2))
    given = feeds(1, seed=3)
    made.run(given)
    assert torch.equal(runner.seen[-1][0], torch.from_numpy(given[0]).expand(4, 4))


def test_answers_stay_when_their_slot_comes_round_again(runner: Counted) -> None:
    made = lane(runner)
    batches = [feeds(2, seed) for seed in range(5)]
    answers = [made.run(batch) for batch in batches]
    for found, given in zip(answers, batches, strict=True):
        same(found, given)


def test_two_batches_on_their_way_do_not_disturb_each_other(runner: Counted) -> None:
    made = lane(runner)
    first, second = feeds(3, 1), feeds(2, 2)
    waiting = [made.submit(first), made.submit(second)]
    assert len({id(slot) for slot in waiting}) == SLOTS
    same(made.fetch(waiting[0]), first)
    same(made.fetch(waiting[1]), second)


def test_buffers_are_taken_once_and_again_after_a_release(runner: Counted) -> None:
    made = lane(runner)
    made.prepare()
    assert set(made.replays) == {1, 2, 4}
    places = [buffer.data_ptr() for slot in made._slots for buffer in slot.device_in]
    for seed in range(4):
        made.run(feeds(4, seed))
    assert places == [buffer.data_ptr() for slot in made._slots for buffer in slot.device_in]
    made.release()
    assert not made.replays and not made._slots
    given = feeds(4)
    same(made.run(given), given)


def test_after_rows_that_the_net_refuses_the_next_batch_is_answered(runner: Counted) -> None:
    made = lane(runner)
    bad = feeds(7)
    bad[1][5] = 99  # beyond the table: the second of two batches fails
    for _ in range(3):
        with pytest.raises(IndexError):
            made.run(bad)
        given = feeds(6)
        same(made.run(given), given)


class Recorded(Processor):
    """The processor, and the order in which work was queued, marked and waited for, as three streams would see it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events = 0
        self.captures = 0

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.lines.append(f"queue {name}")
        yield

    def mark(self, name: str) -> str:
        self.events += 1
        self.lines.append(f"mark {name} {self.events}")
        return f"{name} {self.events}"

    def after(self, name: str, event: str) -> None:
        self.lines.append(f"{name} after {event}")

    def wait(self, event: str) -> None:
        self.lines.append(f"wait {event}")

    def capture(self, call: Replay) -> Replay:
        """Like a graph: its outputs are the same tensors at every replay."""
        self.captures += 1
        fixed = [value.clone() for value in call()]

        def replay() -> Sequence[Tensor]:
            for kept, value in zip(fixed, call(), strict=True):
                kept.copy_(value)
            return fixed

        return replay


def test_each_stream_waits_for_the_one_before_and_the_host_for_the_last(runner: Counted) -> None:
    engine = Recorded()
    made = lane(runner, engine=engine)
    slot = made.submit(feeds(2))
    assert engine.lines == [
        "queue up", "mark up 1", "work after up 1", "queue work", "queue work", "mark work 2", "down after work 2",
        "queue down", "mark down 3",
    ]  # fmt: skip
    made.fetch(slot)
    assert engine.lines[-1] == "wait down 3"


def test_a_long_batch_queues_the_next_part_before_it_waits_for_the_first(runner: Counted) -> None:
    engine = Recorded()
    given = feeds(12)
    same(lane(runner, engine=engine).run(given), given)
    moments = [line for line in engine.lines if line.startswith(("queue up", "wait"))]
    assert moments == ["queue up", "queue up", "wait down 3", "queue up", "wait down 6", "wait down 9"]


def test_every_bucket_is_captured_once_though_its_outputs_are_reused(runner: Counted) -> None:
    engine = Recorded()
    made = lane(runner, engine=engine)
    batches = [feeds(rows, seed) for seed, rows in enumerate((1, 4, 2, 3, 1, 4))]
    answers = [made.run(batch) for batch in batches]
    assert engine.captures == 3
    for found, given in zip(answers, batches, strict=True):
        same(found, given)
