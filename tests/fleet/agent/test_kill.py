"""A real agent of a real fleet, killed in the middle of updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.slots import is_whole
from tests.fleet.agent.live import LiveFleet, agent_process, until

Mark = Callable[[Home, str], bool]


def has_begun(home: Home, digest: str) -> bool:
    return any(home.part.iterdir()) or (home.blobs / digest).exists()


def is_filling(home: Home, digest: str) -> bool:
    return (home.slots / f".{digest}").exists() or is_filled(home, digest)


def is_filled(home: Home, digest: str) -> bool:
    return home.slot(digest).exists()


def is_switched(home: Home, digest: str) -> bool:
    return home.read_state().active == digest


def is_pointed(home: Home, digest: str) -> bool:
    return home.current.resolve().name == digest


def is_settled(home: Home, digest: str) -> bool:
    return is_switched(home, digest) and home.read_state().heard


# What an update has come to, and how much later the agent is killed.
MOMENTS: tuple[tuple[Mark, float], ...] = (
    (has_begun, 0.0),
    (is_filling, 0.0),
    (is_filled, 0.0),
    (is_filled, 0.3),
    (is_switched, 0.0),
    (is_switched, 0.003),
    (is_pointed, 0.0),
    (is_pointed, 0.01),
    (is_settled, 0.0),
)


def check_sound(home: Home) -> str:
    state = home.read_state()
    assert state.active is not None
    assert all(is_whole(home.slot(one), one) for one in state.named)
    return state.active


def kill_at(moments: Sequence[tuple[Mark, float]], home: Home, live: LiveFleet, digests: dict[str, str]) -> None:
    live.enroll(home)
    live.order("pi-1", digests["old"])
    with agent_process(home):
        until(lambda: live.device().slot.running == digests["old"], "the first bundle answers")
    wanted = ["new", "third", "old"]
    for number, (mark, later) in enumerate(moments):
        digest = digests[wanted[number % 3]]
        live.order("pi-1", digest)
        before = check_sound(home)
        with agent_process(home) as process:
            until(lambda: mark(home, digest), f"the update has come to {mark.__name__}", pause_s=0.001)  # noqa: B023
            time.sleep(later)
            assert process.poll() is None
        assert check_sound(home) in {before, digest}
    last = digests[wanted[len(moments) % 3]]
    live.order("pi-1", last)
    with agent_process(home):
        until(lambda: is_settled(home, last), "the update arrives")  # what the fleet knows may be older than the kills
        until(lambda: live.device().slot.running == last, "the fleet is told")
    assert check_sound(home) == last and home.current.resolve().name == last


def test_agent_that_is_killed_in_a_download_and_at_a_switch_answers_and_arrives(
    home: Home, live: LiveFleet, digests: dict[str, str]
) -> None:
    kill_at([(is_filling, 0.0), (is_switched, 0.0)], home, live, digests)


@pytest.mark.slow
def test_agent_that_is_killed_at_many_moments_answers_and_arrives(
    home: Home, live: LiveFleet, digests: dict[str, str]
) -> None:
    kill_at(MOMENTS, home, live, digests)


def test_agent_ends_cleanly_when_it_is_asked_to(home: Home, live: LiveFleet, digests: dict[str, str]) -> None:
    live.enroll(home)
    live.order("pi-1", digests["old"])
    with agent_process(home) as process:
        until(lambda: live.device().slot.running == digests["old"], "the bundle answers")
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_second_agent_in_the_same_folder_is_refused(home: Home, live: LiveFleet) -> None:
    live.enroll(home)
    with agent_process(home):
        until(lambda: live.device().seen_at, "the first is there")
        with agent_process(home) as second:
            assert second.wait(20) == 17
            assert second.stderr is not None
            assert b"another agent runs in" in second.stderr.read()


def test_folder_that_was_never_enrolled_is_told_apart(tmp_path: Path) -> None:
    home = Home(tmp_path / "none")
    home.make()
    with agent_process(home) as process:
        assert process.wait(20) == 2
        assert process.stderr is not None
        assert b"is not enrolled" in process.stderr.read()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_daemon_is_small_and_imports_nothing_heavy(home: Home, live: LiveFleet, digests: dict[str, str]) -> None:
    live.enroll(home)
    live.order("pi-1", digests["old"])
    with agent_process(home) as process:
        until(lambda: live.device().slot.running == digests["old"], "the bundle answers")
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    resident_kb = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident_kb <= 60 * 1024, resident_kb
    for library in ("numpy", "PIL", "grpc", "torch", "onnxruntime", "sqlalchemy", "scipy", "cryptography"):
        assert f"/{library}/" not in maps
