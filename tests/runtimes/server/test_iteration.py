from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.loop import Chunks, Loop
from edgekit.errors import DeadlineError, SessionError, UnreachableError
from edgekit.runtimes.onnx_session import OnnxSession
from edgekit.runtimes.server.iteration import IterationOptions, Iterations
from edgekit.runtimes.server.ongoing import Ongoing
from edgekit.runtimes.server.output_guard import GuardOptions
from edgekit.runtimes.server.schedule import QueueFullError, QuotaError, Tenant
from edgekit.runtimes.server.sequences import Generation, Recording
from edgekit.runtimes.server.slots import Slots

from .steps import HEARD, HOP, WRITTEN, heard_alone, open_step, written_alone

Arrays = Mapping[str, np.ndarray]


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[OnnxSession]:
    with open_step(tmp_path, HEARD) as session:
        yield session


@pytest.fixture
def written(tmp_path: Path) -> Iterator[OnnxSession]:
    with open_step(tmp_path, WRITTEN) as session:
        yield session


class Clock:
    """Seconds that pass when a step is run, each as long as the last one was said to be."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def by_hand(session: OnnxSession, loop: Loop, options: IterationOptions, *tenants: Tenant, clock: Clock | None = None):
    slots = Slots(session.run, session.inputs, session.outputs, loop, options.slots)
    return Iterations("steps", slots, options, tenants, clock=clock or Clock(), threaded=False)


def recording(iterations: Iterations, samples: np.ndarray, most: int = 1000) -> Recording:
    assert isinstance(HEARD.feed, Chunks)
    return Recording(HEARD.feed, samples, iterations.slots.results, most)


def noise(windows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(windows * HOP).astype(np.float32)


def test_every_recording_is_heard_as_if_alone_from_many_threads(heard: OnnxSession) -> None:
    options = IterationOptions(slots=4, queue=100)
    slots = Slots(heard.run, heard.inputs, heard.outputs, HEARD, 4)
    steps: list[int] = []
    iterations = Iterations("steps", slots, options, observe=lambda rows, start, end, failed: steps.append(rows))
    sounds = [noise(3 + 7 * (index % 5), index)[: -1 - index % 2] for index in range(24)]
    got: dict[int, np.ndarray] = {}

    def ask(index: int) -> None:
        outcome = iterations.submit(recording(iterations, sounds[index])).result()
        assert (outcome.finish, outcome.degraded) == ("stop", False)
        got[index] = outcome.tensors["y"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    iterations.close()
    for index, sound in enumerate(sounds):
        np.testing.assert_array_equal(got[index], heard_alone(heard, sound))
    assert max(steps) > 1
    assert sum(steps) == sum(map(len, got.values()))
    assert iterations.is_idle


def test_requests_join_and_leave_at_the_borders_of_steps(heard: OnnxSession) -> None:
    iterations = by_hand(heard, HEARD, IterationOptions(slots=2))
    rows: list[int] = []
    iterations._observe = lambda count, start, end, failed: rows.append(count)
    long = iterations.submit(recording(iterations, noise(6)))
    assert iterations.turn()
    short = iterations.submit(recording(iterations, noise(2)))
    third = iterations.submit(recording(iterations, noise(2)))
    for _ in range(5):
        iterations.turn()
    assert rows == [1, 2, 2, 2, 2, 1]
    assert not iterations.turn()
    assert [one.result().steps for one in (long, short, third)] == [6, 2, 2]


def test_tenants_join_by_the_steps_they_had(heard: OnnxSession) -> None:
    iterations = by_hand(heard, HEARD, IterationOptions(slots=1), Tenant("a"), Tenant("b"))
    order: list[str] = []

    def send(tenant: str, windows: int) -> Ongoing:
        return iterations.submit(recording(iterations, noise(windows)), tenant=tenant)

    asked = [send("a", 4), send("a", 4), send("b", 2), send("b", 2), send("b", 2)]
    while iterations.turn():
        order += [one.tenant for one in asked if one.outcome is not None and one.steps]
        asked = [one for one in asked if one.outcome is None]
    assert order == ["a", "b", "b", "a", "b"]


def test_generations_side_by_side_are_those_of_each_alone(written: OnnxSession) -> None:
    iterations = by_hand(written, WRITTEN, IterationOptions(slots=3, guard=GuardOptions(max_period=0)))
    prompts = [[2, 3], [4], [5, 6, 7], [], [9, 8], [10]]
    asked = [
        iterations.submit(Generation(WRITTEN.feed, prompt, 40, guard=iterations.options.guard)) for prompt in prompts
    ]
    while iterations.turn():
        pass
    for prompt, one in zip(prompts, asked, strict=True):
        alone = written_alone(written, prompt, 40)
        assert one.result().tensors["x"].tolist() == alone
        assert one.result().finish == ("length" if len(alone) == 40 else "stop")


def test_a_deadline_gives_what_there_is_marked(heard: OnnxSession) -> None:
    clock = Clock()
    iterations = by_hand(heard, HEARD, IterationOptions(slots=2, margin_s=0.0), clock=clock)
    sound = noise(50)
    partly = iterations.submit(recording(iterations, sound), deadline=10.0)
    late = iterations.submit(recording(iterations, sound), deadline=20.0)
    waiting = iterations.submit(recording(iterations, sound), deadline=5.0)
    for now in range(30):
        clock.now = float(now)
        iterations.turn()
    outcome = partly.result()
    assert (outcome.finish, outcome.degraded, len(outcome.tensors["y"])) == ("deadline", True, 10)
    np.testing.assert_array_equal(outcome.tensors["y"], heard_alone(heard, sound)[:10])
    assert late.result().steps == 20
    with pytest.raises(DeadlineError, match="while the request waited"):
        waiting.result()


def test_whoever_comes_and_goes_in_any_order_is_heard_as_alone(heard: OnnxSession) -> None:
    generator, clock = np.random.default_rng(8), Clock()
    options = IterationOptions(slots=3, queue=1000, margin_s=0.0)
    iterations = by_hand(heard, HEARD, options, Tenant("a", share=2.0), Tenant("b"), clock=clock)
    asked: list[tuple[np.ndarray, Ongoing]] = []
    for _ in range(400):
        clock.now += 1.0
        if generator.random() < 0.6:
            sound = noise(int(generator.integers(1, 15)), len(asked))
            deadline = clock.now + float(generator.integers(5, 60))
            tenant = str(generator.choice(["a", "b", "c"]))
            asked.append((sound, iterations.submit(recording(iterations, sound), deadline, tenant)))
        if asked and generator.random() < 0.05:
            asked[int(generator.integers(len(asked)))][1].cancel()
        iterations.turn()
        assert len(iterations._active) + iterations.slots.free == 3
    while iterations.turn():
        clock.now += 1.0
    finishes = set()
    for sound, one in asked:
        if one.error is not None:
            assert isinstance(one.error, DeadlineError)
            finishes.add("late")
            continue
        assert one.outcome is not None
        rows = one.outcome.tensors["y"]
        np.testing.assert_array_equal(rows, heard_alone(heard, sound)[: len(rows)])
        assert one.outcome.degraded == (len(rows) * HOP < len(sound))
        finishes.add(one.outcome.finish)
    assert finishes == {"stop", "deadline", "length", "late"}
    assert iterations.is_idle


def test_a_step_that_hangs_does_not_hold_its_callers(heard: OnnxSession) -> None:
    go_on, calls = threading.Event(), []

    def run(feeds: Arrays) -> Arrays:
        calls.append(1)
        if len(calls) > hung_from:
            go_on.wait()
        return heard.run(feeds)

    hung_from = 1000
    slots = Slots(run, heard.inputs, heard.outputs, HEARD, 2)
    hung_from = len(calls) + 1
    iterations = Iterations("steps", slots, IterationOptions(slots=2))
    for wait in (Ongoing.result, lambda one: list(one.pieces())):
        one = iterations.submit(recording(iterations, noise(3)), time.monotonic() + 0.1)
        with pytest.raises(DeadlineError):
            wait(one)
    go_on.set()
    iterations.close()


def test_a_step_is_not_begun_that_would_end_behind_the_deadline(heard: OnnxSession) -> None:
    clock = Clock()
    iterations = by_hand(heard, HEARD, IterationOptions(slots=2, margin_s=0.0), clock=clock)
    one = iterations.submit(recording(iterations, noise(9)), deadline=4.0)
    iterations.turn()
    iterations._step_s = 3.0
    clock.now = 1.5
    assert not iterations.turn()
    assert one.result().steps == 1


def test_a_cut_answer_leaves_before_its_deadline(heard: OnnxSession) -> None:
    clock = Clock()
    iterations = by_hand(heard, HEARD, IterationOptions(slots=2, margin_s=2.0), clock=clock)
    one = iterations.submit(recording(iterations, noise(9)), deadline=5.5)
    for now in range(4):
        clock.now = float(now)
        iterations.turn()
    assert one.outcome is None
    clock.now = 3.5
    iterations.turn()
    assert one.result().finish == "deadline"
    assert one.result().steps == 4


def test_nothing_by_the_deadline_is_an_error(written: OnnxSession) -> None:
    clock = Clock()
    iterations = by_hand(written, WRITTEN, IterationOptions(slots=2, margin_s=0.0), clock=clock)
    one = iterations.submit(Generation(WRITTEN.feed, [2] * 30, 5), deadline=10.0)
    for now in range(12):
        clock.now = float(now)
        iterations.turn()
    with pytest.raises(DeadlineError, match="nothing by the deadline"):
        one.result()


def test_a_tenant_writes_no_more_than_its_tokens_a_minute(written: OnnxSession) -> None:
    clock = Clock()
    iterations = by_hand(written, WRITTEN, IterationOptions(slots=2, tokens_per_minute=6.0), clock=clock)
    free = GuardOptions(max_period=0)
    assert len(written_alone(written, [2], 9)) == 9, "the model itself would go on"
    one = iterations.submit(Generation(WRITTEN.feed, [2], 9, guard=free), tenant="a")
    while iterations.turn():
        pass
    outcome = one.result()
    assert (outcome.finish, outcome.degraded, len(outcome.tensors["x"])) == ("length", True, 6)
    with pytest.raises(QuotaError, match="6 tokens a minute") as caught:
        iterations.submit(Generation(WRITTEN.feed, [2], 9), tenant="a")
    assert caught.value.retry_after_s == pytest.approx(10.0)
    iterations.submit(Generation(WRITTEN.feed, [2], 9), tenant="b")
    clock.now = 10.0
    iterations.submit(Generation(WRITTEN.feed, [2], 9), tenant="a")


def test_a_full_queue_refuses_and_says_when(heard: OnnxSession) -> None:
    iterations = by_hand(heard, HEARD, IterationOptions(slots=1, queue=2))
    for _ in range(3):
        iterations.submit(recording(iterations, noise(3)))
    with pytest.raises(QueueFullError, match="allowed 2"):
        iterations.submit(recording(iterations, noise(3)))


def test_one_tenant_cannot_take_all_places(heard: OnnxSession) -> None:
    options = IterationOptions(slots=1, queue=9)
    iterations = by_hand(heard, HEARD, options, Tenant("a"), Tenant("b"))
    iterations.submit(recording(iterations, noise(30)))
    iterations.turn()
    for _ in range(3):
        iterations.submit(recording(iterations, noise(3)), tenant="a")
    with pytest.raises(QueueFullError, match="for the tenant 'a'"):
        iterations.submit(recording(iterations, noise(3)), tenant="a")
    for _ in range(3):
        iterations.submit(recording(iterations, noise(3)), tenant="b")
        iterations.submit(recording(iterations, noise(3)))
    with pytest.raises(QueueFullError):
        iterations.submit(recording(iterations, noise(3)), tenant="c")


def test_an_accident_between_steps_ends_those_inside(heard: OnnxSession) -> None:
    slots = Slots(heard.run, heard.inputs, heard.outputs, HEARD, 2)
    iterations = Iterations("steps", slots, IterationOptions(slots=2))

    def broken(rows: int, start: int, end: int, failed: bool) -> None:
        raise ZeroDivisionError("nobody thought of this")

    iterations._observe = broken
    with pytest.raises(SessionError, match="nobody thought of this"):
        iterations.submit(recording(iterations, noise(3))).result()
    iterations._observe = None
    sound = noise(3)
    outcome = iterations.submit(recording(iterations, sound)).result()
    np.testing.assert_array_equal(outcome.tensors["y"], heard_alone(heard, sound))
    iterations.close()


def test_one_bad_request_does_not_spoil_the_others(heard: OnnxSession) -> None:
    def run(feeds: Arrays) -> Arrays:
        if (feeds["x"] == 13).any():
            raise SessionError("thirteen")
        return heard.run(feeds)

    slots = Slots(run, heard.inputs, heard.outputs, HEARD, 4)
    iterations = Iterations("steps", slots, IterationOptions(slots=4), threaded=False)
    sounds = [noise(5, seed) for seed in range(3)]
    sounds[1][7] = 13
    asked = [iterations.submit(recording(iterations, sound)) for sound in sounds]
    while iterations.turn():
        pass
    with pytest.raises(SessionError, match="thirteen"):
        asked[1].result()
    for index in (0, 2):
        np.testing.assert_array_equal(asked[index].result().tensors["y"], heard_alone(heard, sounds[index]))
    assert slots.free == 4


def test_pieces_come_as_they_are_made_and_add_up(heard: OnnxSession) -> None:
    slots = Slots(heard.run, heard.inputs, heard.outputs, HEARD, 2)
    iterations = Iterations("steps", slots, IterationOptions(slots=2))
    sound = noise(40)
    one = iterations.submit(recording(iterations, sound))
    pieces = [piece["y"] for piece in one.pieces()]
    iterations.close()
    assert all(len(piece) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), heard_alone(heard, sound))


def test_who_gives_up_frees_its_slot(heard: OnnxSession) -> None:
    iterations = by_hand(heard, HEARD, IterationOptions(slots=1))
    first, second = (iterations.submit(recording(iterations, noise(9))) for _ in range(2))
    iterations.turn()
    first.cancel()
    second.cancel()
    assert not iterations.turn()
    assert first.result().degraded
    assert iterations.is_idle


def test_closing_finishes_what_is_here_and_refuses_more(heard: OnnxSession) -> None:
    slots = Slots(heard.run, heard.inputs, heard.outputs, HEARD, 2)
    iterations = Iterations("steps", slots, IterationOptions(slots=2))
    asked = [iterations.submit(recording(iterations, noise(20, seed))) for seed in range(5)]
    iterations.close()
    assert [one.result().finish for one in asked] == ["stop"] * 5
    with pytest.raises(UnreachableError, match="closing"):
        iterations.submit(recording(iterations, noise(3)))


def test_where_nobody_has_time_those_who_wait_are_refused_and_those_who_run_leave_with_what_they_have(
    heard: OnnxSession,
) -> None:
    iterations = by_hand(heard, HEARD, IterationOptions(slots=1))
    first, second = (iterations.submit(recording(iterations, noise(50, index))) for index in range(2))
    for _ in range(3):
        assert iterations.turn()
    iterations.refuse_waiting()
    with pytest.raises(UnreachableError, match="is closing"):
        second.result()
    with pytest.raises(UnreachableError, match="is closing"):
        iterations.submit(recording(iterations, noise(1)))
    while iterations.turn():
        pass
    outcome = first.result()
    assert outcome.degraded and len(outcome.tensors["y"]) == 3
    assert iterations.is_idle
