"""Several real processes on PostgreSQL behind one port: they hear of each other, replace each other, stop together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from edgekit.errors import UsageError
from edgekit.fleet.client import AgentClient, FleetClient
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService
from tests.fleet.acting import enroll, push, says
from tests.fleet.bundles import make_bundle

ADVANCED_S = 30.0  # within which a step of a rollout must have come, on a busy machine


@dataclass
class Running:
    url: str
    token: str
    process: subprocess.Popen[str]

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(one) for one in path.read_text().split()]


def until(holds: Callable[[], object], seconds: float = ADVANCED_S) -> None:
    ends_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


@contextlib.contextmanager
def serving(data: Path, url: str, workers: int) -> Iterator[Running]:
    command = [sys.executable, "-m", "edgekit", "fleet", "serve", "--json", "--port", "0"]
    command += ["--data", str(data), "--db", url, "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        said = json.loads("".join(lines))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Running(said["url"], said["token"], process)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def answers(running: Running) -> bool:
    try:
        return httpx.get(f"{running.url}/v1/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_several_workers_on_sqlite_are_refused(tmp_path: Path) -> None:
    from edgekit.cli.fleet_serve import serve

    with pytest.raises(UsageError, match="allowed 1") as caught:
        serve.main(["--workers", "2", "--data", str(tmp_path)], standalone_mode=False)
    assert "postgresql" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_workers_share_a_port_are_replaced_when_they_die_and_stop_together(postgresql_url: str, tmp_path: Path) -> None:
    with serving(tmp_path / "data", postgresql_url, 2) as running:
        until(lambda: len(running.children()) == 2 and answers(running))
        first, second = running.children()
        os.kill(first, signal.SIGKILL)
        until(lambda: len(running.children()) == 2 and first not in running.children())
        assert second in running.children()
        until(lambda: answers(running))
        children = running.children()
        running.process.terminate()
        assert running.process.wait(30) == 0
        assert not any(Path(f"/proc/{one}").exists() for one in children)


def test_whichever_worker_is_asked_tells_what_all_of_them_counted(postgresql_url: str, tmp_path: Path) -> None:
    """Also what one of them counted that is dead by then."""
    fleet = FleetService(tmp_path / "data", postgresql_url)
    device = enroll(fleet, "pi")
    token = fleet.people.found()
    fleet.close()
    with serving(tmp_path / "data", postgresql_url, 2) as running:
        until(lambda: len(running.children()) == 2 and answers(running))

        def counted(name: str) -> float:
            asked = {"Authorization": f"Bearer {token}"}
            answer = httpx.get(f"{running.url}/metrics", headers=asked, timeout=20)
            assert answer.status_code == 200, answer.text
            lines = answer.text.splitlines()
            return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

        for _ in range(20):  # each on a connection of its own, so that both workers have their share
            with contextlib.closing(AgentClient(running.url, token=device.token)) as agent:
                agent.sync(says(None))
        until(lambda: counted("edgekit_fleet_intake_calls_total") == 20)
        assert {counted("edgekit_fleet_sync_seconds_count") for _ in range(10)} == {20.0}
        assert counted("edgekit_fleet_directory_devices") == 1, "each knows it, and it is one"
        os.kill(running.children()[0], signal.SIGKILL)
        until(lambda: len(running.children()) == 2 and answers(running))
        assert {counted("edgekit_fleet_sync_seconds_count") for _ in range(10)} == {20.0}


def test_workers_end_when_their_parent_is_killed(postgresql_url: str, tmp_path: Path) -> None:
    with serving(tmp_path / "data", postgresql_url, 2) as running:
        until(lambda: len(running.children()) == 2 and answers(running))
        children = running.children()
        running.process.kill()
        running.process.wait(10)
        until(lambda: not any(_runs(one) for one in children))


def _runs(process: int) -> bool:
    """A dead one that nobody has asked for is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def leader(url: str) -> str | None:
    engine = create_engine(url)
    with engine.connect() as connection:
        holder = connection.execute(
            text("SELECT holder FROM leases WHERE ends_at > extract(epoch FROM clock_timestamp())")
        ).scalar()
    engine.dispose()
    return holder


def test_the_rollout_of_a_killed_leader_goes_on_in_the_other(postgresql_url: str, tmp_path: Path) -> None:
    """And a device that waits at one worker hears at once of what the other one decided."""
    data = tmp_path / "data"
    fleet = FleetService(data, postgresql_url)
    bundle = push(fleet, make_bundle(tmp_path / "net", as_directory=True)).digest
    devices = [enroll(fleet, f"pi-{number}", {"board": "rpi4"}) for number in range(2)]
    with serving(data, postgresql_url, 1) as one:
        until(lambda: answers(one))
        with serving(data, postgresql_url, 1) as two:
            until(lambda: answers(two) and leader(postgresql_url))
            with FleetClient(one.url, one.token) as client:
                client.put_group("pi", GroupOrder(selector="board=rpi4"))
                order = RolloutOrder(bundle=bundle, group="pi", steps=(0.5, 1.0), soak_s=0.0)
                rollout = client.roll_out(order).id
            until(lambda: fleet.rollouts.get(rollout).tally.asked == 1)
            held = leader(postgresql_url)
            first, second = devices if wanted(fleet, devices[0].device) else reversed(devices)
            # `one` started first and leads; its process is killed with the canary under way.
            one.process.kill()
            one.process.wait(10)
            waiting = Waiting(two.url, second.token, fleet.devices.directory.get(second.device).generation)
            fleet.devices.sync(first.device, says(bundle, checked=4, right=4))
            until(lambda: leader(postgresql_url) not in (None, held))
            assert waiting.result(bundle) == bundle
            fleet.devices.sync(second.device, says(bundle, checked=4, right=4))
            until(lambda: fleet.rollouts.get(rollout).state == "complete")
    fleet.close()


def wanted(fleet: FleetService, device: str) -> str | None:
    return fleet.devices.get(device).wanted


class Waiting:
    """A device that asks again and again with a long wait, as an agent does."""

    def __init__(self, url: str, token: str, known: int) -> None:
        self._url, self._token, self._known = url, token, known
        self._found: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {self._token}"}) as client:
            while not self._stop.is_set() and self._found is None:
                body = says(None, known=self._known).model_copy(update={"wait_s": 20.0})
                answer = client.post("/v1/agent/sync", content=body.model_dump_json(), timeout=40.0)
                assert answer.status_code == 200, answer.text
                said = answer.json()
                self._known = said["generation"]
                self._found = said["bundle"] and said["bundle"]["digest"]

    def result(self, digest: str) -> str | None:
        until(lambda: self._found == digest)
        self._stop.set()
        self._thread.join(10)
        return self._found
