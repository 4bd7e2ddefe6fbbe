"""The node of an agent: real processes, exchanged without a lost request, started again, watched."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgekit.errors import SessionError
from edgekit.fleet.agent import runtime as runtime_module
from edgekit.fleet.agent.node_seen import NodeSeen
from edgekit.fleet.agent.runtime import NodeRuntime
from edgekit.runtimes.protocol.frames import model_name
from tests.fleet.agent.live import digest_of, free_ports, until
from tests.fleet.bundles import make_bundle

MODEL = model_name("net", "model")
BODY = {"inputs": [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": [1, 1, 1, 1, 1, 1]}]}


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles as they lie in slots: named by their digests."""
    folder = tmp_path_factory.mktemp("slots")
    found = {}
    for name, scale in {"old": 2.0, "new": 3.0}.items():
        made = make_bundle(folder / name, scale=scale, as_directory=True)
        found[name] = made.rename(folder / digest_of(made))
    return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeRuntime]:
    monkeypatch.setattr(runtime_module, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(runtime_module, "WATCH_S", 0.05)
    port = free_ports()
    runtime = NodeRuntime(tmp_path / "served", "edge", port, port + 1)
    yield runtime
    runtime.close()


def score(node: NodeRuntime) -> float:
    answer = httpx.post(f"{node.url}/v2/models/{MODEL}/infer", json=BODY, timeout=10)
    assert answer.status_code == 200
    return float(answer.json()["outputs"][0]["data"][0])


def pid(node: NodeRuntime) -> int:
    assert node._process is not None
    return node._process.pid


def test_bundles_are_exchanged_without_a_lost_request_and_kept_ones_stay(
    node: NodeRuntime, slots: dict[str, Path]
) -> None:
    old, new = slots["old"], slots["new"]
    node.use(old)
    first, process = score(node), pid(node)
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                answers.append(client.post(f"{node.url}/v2/models/{MODEL}/infer", json=BODY, timeout=10).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    node.use(new, [old])
    assert node.served() == {old.name, new.name}
    assert score(node) == pytest.approx(1.5 * first)  # the new one answers who names none
    node.use(new)
    assert node.served() == {new.name}
    node.use(old, [new])
    assert score(node) == pytest.approx(first)
    stop.set()
    thread.join(20)
    assert len(answers) > 3 and set(answers) == {200}
    assert pid(node) == process


def test_what_a_node_did_is_read_from_it(node: NodeRuntime, slots: dict[str, Path]) -> None:
    node.use(slots["old"])
    assert node.url is not None
    seen = NodeSeen(node.url)
    seen.read()
    for _ in range(5):
        score(node)
    assert httpx.post(f"{node.url}/v2/models/{MODEL}/infer", json={"inputs": []}, timeout=10).status_code == 400
    tally = seen.read()
    assert (tally.answered, tally.errors) == (5, 1)
    assert sum(tally.latency.values()) == 5
    assert seen.read().is_empty


def test_node_that_is_killed_is_started_again(node: NodeRuntime, slots: dict[str, Path]) -> None:
    node.use(slots["old"])
    first = pid(node)
    os.kill(first, signal.SIGKILL)
    until(lambda: node.served() == {slots["old"].name}, "the node is back")
    assert pid(node) != first


def test_node_that_ends_over_and_over_is_reported_with_its_slot(node: NodeRuntime, slots: dict[str, Path]) -> None:
    heard: list[tuple[Path, str]] = []
    node.on_failing = lambda slot, reason: heard.append((slot, reason))
    node.use(slots["old"])
    killed: set[int] = set()
    end = time.monotonic() + 60
    while not heard and time.monotonic() < end:
        process = node._process
        if process is not None and process.pid not in killed and process.poll() is None:
            killed.add(process.pid)
            process.kill()
        time.sleep(0.01)
    assert heard[0][0] == slots["old"] and heard[0][1].startswith("the node ended 5 times within")


def test_port_that_another_program_holds_is_told_and_is_no_fault_of_the_bundle(
    node: NodeRuntime, slots: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime_module, "PORT_PAUSE_S", 0.05)
    monkeypatch.setattr(runtime_module, "CRASHES", 1)
    heard: list[str] = []
    node.on_failing = lambda slot, reason: heard.append(reason)
    port = node._ports[0]
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(SessionError, match=f"another program listens on port {port}"):
            node.use(slots["old"])
        until(lambda: "give another --serve" in caplog.text, "it is told")
    until(lambda: node.served() == {slots["old"].name}, "the node is there as soon as the port is")
    assert heard == []


def test_node_that_hangs_is_ended_and_started_again(
    node: NodeRuntime, slots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "LOOK_S", 0.5)
    monkeypatch.setattr(runtime_module, "SILENT_S", 1.0)
    node.use(slots["old"])
    first = pid(node)
    until(lambda: node._live_at is not None, "it was seen to live")
    os.kill(first, signal.SIGSTOP)
    until(lambda: pid(node) != first and node.served(), "another node answers")


def test_bundle_that_cannot_be_served_is_told_and_the_one_before_answers_again(
    node: NodeRuntime, slots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "START_S", 3.0)
    node.use(slots["old"])
    first = score(node)
    broken = tmp_path / ("f" * 64)
    broken.mkdir()
    (broken / "index.json").write_text("{}")
    with pytest.raises(SessionError, match="does not serve"):
        node.use(broken)
    assert score(node) == first  # all the while
    node.use(slots["old"])
    assert node.served() == {slots["old"].name}


def test_nothing_is_written_where_nothing_changes(node: NodeRuntime, slots: dict[str, Path], tmp_path: Path) -> None:
    node.use(slots["old"])
    before = (tmp_path / "served" / "00").lstat().st_ino
    again = NodeRuntime(tmp_path / "served", "edge", 1, 2)
    again._wanted = (slots["old"],)
    again._lay_out()
    assert (tmp_path / "served" / "00").lstat().st_ino == before


def test_node_ends_with_its_agent(node: NodeRuntime, slots: dict[str, Path]) -> None:
    node.use(slots["old"])
    process = node._process
    assert process is not None and process.stdin is not None
    process.stdin.close()  # as the system does when the agent is killed
    until(lambda: process.poll() is not None, "the node ends")
