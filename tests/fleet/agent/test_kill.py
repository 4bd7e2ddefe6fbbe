"""A real agent of a real fleet, killed in the middle of updates."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.slots import is_whole
from tests.fleet.agent.live import LiveFleet, agent_process, until

# Seconds after the start, or after the phase that an update has come to by then.
MOMENTS = (0.3, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.3)


def check_sound(home: Home) -> str:
    state = home.read_state()
    assert state.active is not None
    assert all(is_whole(home.slot(one), one) for one in state.named)
    return state.active


def test_agent_that_is_killed_again_and_again_answers_and_arrives(
    home: Home, live: LiveFleet, digests: dict[str, str]
) -> None:
    live.enroll(home)
    live.order("pi-1", digests["old"])
    with agent_process(home):
        until(lambda: live.device().slot.running == digests["old"], "the first bundle answers")
    wanted = ["new", "third", "old"]
    seen = set()
    for number, moment in enumerate(MOMENTS):
        live.order("pi-1", digests[wanted[number % 3]])
        with agent_process(home) as process:
            time.sleep(moment)
            assert process.poll() is None
        seen.add(check_sound(home))
    with agent_process(home):
        last = digests[wanted[(len(MOMENTS) - 1) % 3]]
        until(lambda: live.device().slot.running == last, "the update arrives")
        until(lambda: home.read_state().heard, "the update is settled")
    assert check_sound(home) == last and home.current.resolve().name == last
    assert len(seen) > 1  # some updates came through in between


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
