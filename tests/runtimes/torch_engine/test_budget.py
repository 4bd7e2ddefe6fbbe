"""Models share a bound: the least recently used one gives way, comes back with the same answers, never too many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.errors import DeviceError, UsageError
from edgekit.runtimes.torch_engine import TorchOptions, open_torch
from edgekit.runtimes.torch_engine.budget import Member, MemoryBudget, join_shared
from edgekit.runtimes.torch_engine.session import EngineSession


class Scene:
    """A budget of 100 bytes; `log` holds what was brought and taken, in order."""

    def __init__(self, *sizes: int) -> None:
        self.log: list[str] = []
        self.budget = MemoryBudget(100, "test")
        self.members = [self.member(f"m{index}", size) for index, size in enumerate(sizes)]
        for member in self.members:
            self.budget.join(member)

    def member(self, name: str, size: int) -> Member:
        return Member(name, size, lambda: self.log.append(f"+{name}"), lambda: self.log.append(f"-{name}"))

    def run(self, *indices: int) -> None:
        for index in indices:
            with self.budget.use(self.members[index]):
                assert self.budget.resident_bytes <= self.budget.limit_bytes


def test_what_fits_together_is_brought_once() -> None:
    scene = Scene(40, 60)
    scene.run(0, 1, 0, 1)
    assert scene.log == ["+m0", "+m1"]


def test_the_least_recently_used_gives_way() -> None:
    scene = Scene(40, 40, 40)
    scene.run(0, 1, 0, 2)
    assert scene.log == ["+m0", "+m1", "-m1", "+m2"]
    scene.run(1)
    assert scene.log[-2:] == ["-m0", "+m1"]


def test_as_many_give_way_as_needed_and_no_more() -> None:
    scene = Scene(30, 30, 30, 70)
    scene.run(0, 1, 2, 3)
    assert scene.log[3:] == ["-m0", "-m1", "+m3"]


def test_a_model_that_runs_is_not_evicted_and_the_next_waits_for_it() -> None:
    scene = Scene(60, 60)
    entered = threading.Event()

    def other() -> None:
        with scene.budget.use(scene.members[1]):
            entered.set()

    with scene.budget.use(scene.members[0]):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
        assert scene.log == ["+m0"]
    thread.join(10)
    assert entered.is_set() and scene.log == ["+m0", "-m0", "+m1"]


def test_what_can_never_fit_is_refused_with_need_and_have() -> None:
    scene = Scene(10)
    with pytest.raises(DeviceError, match="needs 101 bytes on test, have 100"):
        scene.budget.join(scene.member("large", 101))
    with pytest.raises(DeviceError, match="needs 200 bytes"):
        scene.budget.resize(scene.members[0], 200)


def test_a_model_that_turns_out_larger_pushes_others_out() -> None:
    scene = Scene(40, 40)
    scene.run(0, 1)
    scene.budget.resize(scene.members[1], 70)
    assert scene.log[-1] == "-m0" and scene.budget.resident_bytes == 70


def test_an_upload_that_fails_holds_nothing() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    budget = MemoryBudget(100, "test")
    member = Member("broken", 100, fail, lambda: None)
    budget.join(member)
    for _ in range(2):
        with pytest.raises(RuntimeError), budget.use(member):
            pass
        assert budget.resident_bytes == 0 and member.uploads == 0


def test_many_threads_stay_within_the_bound_and_all_end() -> None:
    scene = Scene(40, 50, 60, 30)
    over: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            with scene.budget.use(scene.members[index]):
                if scene.budget.resident_bytes > 100:
                    over.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and not over
    for name in ("m0", "m1", "m2", "m3"):
        moves = [line[0] for line in scene.log if line[1:] == name]
        assert moves == ["+", "-"] * (len(moves) // 2) + ["+"] * (len(moves) % 2)


def test_a_process_has_one_bound_for_a_device_until_the_last_model_left() -> None:
    scene = Scene()
    one, two, three = (scene.member(name, 5) for name in ("one", "two", "three"))
    first = join_shared("here", 100, lambda: 7, one)
    assert join_shared("here", None, lambda: 7, two) is first
    with pytest.raises(UsageError, match="200 bytes on here"):
        join_shared("here", 200, lambda: 7, three)
    first.leave(one)
    first.leave(two)
    measured = join_shared("here", None, lambda: 7, three)
    assert measured.limit_bytes == 7
    measured.leave(three)


@pytest.fixture
def pair(cnn: Bundle, tail: Part, packages: Path, request: pytest.FixtureRequest) -> Iterator[list[EngineSession]]:
    """Two sessions of one program, on the processor, under a bound that holds one and a half of them."""
    compiles: bool = request.param
    with ExitStack() as stack:

        def opened(memory_bytes: int | None) -> EngineSession:
            options = TorchOptions(threads=1, cache_dir=packages, compile=compiles, memory_bytes=memory_bytes)
            session = open_torch(cnn, tail, options)
            assert isinstance(session, EngineSession) and session.is_compiled == compiles
            return session

        with opened(None) as free:
            size = free._size_bytes()
        yield [stack.enter_context(opened(size * 3 // 2)) for _ in range(2)]


@pytest.mark.parametrize("pair", [False, True], indirect=True, ids=["eager", "compiled"])
def test_evicted_sessions_come_back_with_the_same_answers(
    pair: list[EngineSession], features: dict[str, np.ndarray]
) -> None:
    budget = pair[0]._budget
    assert budget is not None and budget is pair[1]._budget
    first = [session.run(features)["logits"] for session in pair]
    for _ in range(2):
        for session, wanted in zip(pair, first, strict=True):
            np.testing.assert_array_equal(session.run(features)["logits"], wanted)
            assert [member.is_resident for member in budget.members] == [one is session for one in pair]
    np.testing.assert_array_equal(first[0], first[1])
    assert all(member.uploads >= 3 for member in budget.members)


@pytest.mark.parametrize("pair", [False], indirect=True)
def test_closing_a_session_gives_its_room_back(pair: list[EngineSession], features: dict[str, np.ndarray]) -> None:
    budget = pair[0]._budget
    assert budget is not None
    pair[1].run(features)
    pair[1].close()
    assert budget.resident_bytes == 0 and len(budget.members) == 1
    pair[0].run(features)
    assert budget.members[0].is_resident


def test_a_session_that_can_never_fit_is_refused(cnn: Bundle, tail: Part, packages: Path) -> None:
    options = TorchOptions(threads=1, cache_dir=packages, compile=False, memory_bytes=1000)
    with pytest.raises(DeviceError, match=r"needs [\d,]+ bytes on cpu, have 1,000"):
        open_torch(cnn, tail, options)
