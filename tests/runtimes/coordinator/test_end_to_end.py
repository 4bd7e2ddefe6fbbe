"""A coordinator and real nodes over loopback, under faults: nothing lost, nothing wrong, nothing twice.

How long things take is the benchmark's business (samples/benchmarks/faults.py); here each answer must be right, and
each request must end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import AuthenticationError, MismatchError, UnreachableError
from edgekit.planning.link import Link
from edgekit.planning.plan import PlanLimits
from edgekit.runtimes.coordinator.breaker import BreakerSettings
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.link.emulator import LinkEmulator
from edgekit.runtimes.paced_session import PacedSession
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.runtimes.server.security import Security

DEADLINE_MS = 400.0
QUICK = BreakerSettings(failures=2, first_s=0.05, longest_s=0.2)
SERVE = """
import sys, threading
from pathlib import Path
from edgekit.runtimes.server import Node, NodeOptions
node = Node([Path(sys.argv[1])], NodeOptions(threads=1, grpc_port=int(sys.argv[2])))
node.start()
print(node.grpc_url, flush=True)
sys.stdin.read()
node.stop(1.0)
"""


class Process:
    """A node of its own, on a port that stays the same when it starts again. It ends with this process's pipe."""

    def __init__(self, bundle: Path, port: int = 0) -> None:
        self._bundle, self.port = bundle, port
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self._bundle), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the node did not start"
        self.port = int(self.url.rsplit(":", 1)[1])

    def send(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()


@pytest.fixture(scope="module")
def process(bundle_path: Path) -> Iterator[Process]:
    node = Process(bundle_path)
    yield node
    with suppress(ProcessLookupError):
        node.send(signal.SIGCONT)
    node.kill()


@pytest.fixture
def node(bundle_path: Path) -> Iterator[Node]:
    with Node([bundle_path], NodeOptions(threads=1)) as started:
        yield started


@pytest.fixture
def open_coordinator(bundle_path: Path) -> Iterator[Callable[..., Coordinator]]:
    made: list[Coordinator] = []

    def start(edge: Any, **settings: Any) -> Coordinator:
        options = {"policy": "split@0", "deadline_ms": DEADLINE_MS, "threads": 1, "breaker": QUICK, "recheck_s": 0.1}
        made.append(Coordinator(bundle_path, edge, **{**options, **settings}))
        return made[-1]

    yield start
    for coordinator in made:
        coordinator.close()


class Tally:
    """Different questions, so that an answer to another one shows."""

    def __init__(self, coordinator: Coordinator, truth: Any) -> None:
        self._coordinator, self._truth = coordinator, truth
        self._rng = np.random.default_rng(5)
        self.tiers: list[str] = []
        self.reasons: list[str] = []

    def ask(self, count: int) -> None:
        for _ in range(count):
            x = self._rng.random((1, 6), np.float32)
            answer = self._coordinator.ask({"x": x})
            np.testing.assert_allclose(answer.outputs["logits"], self._truth(x), atol=1e-4)
            assert answer.degraded == (answer.tier == "device")
            self.tiers.append(answer.tier)
            self.reasons.append(answer.reason)

    def ask_until(self, tier: str, limit_s: float = 20.0) -> None:
        """Goes on asking until `tier` answers: a node comes back by and by."""
        end = time.monotonic() + limit_s
        while not self.tiers or self.tiers[-1] != tier:
            assert time.monotonic() < end, f"{tier} never answered again: {self.reasons[-1]}"
            self.ask(1)
            time.sleep(0.02)


def test_the_edge_answers_and_forwards_to_the_cloud(bundle_path, node, open_coordinator, truth) -> None:
    with (
        Node([bundle_path], NodeOptions(tier="cloud", threads=1)) as cloud,
        Node([bundle_path], NodeOptions(threads=1, upstream=cloud.grpc_url)) as edge,
    ):
        coordinator = open_coordinator(edge.grpc_url, policy="three-tier@0")
        x = np.random.default_rng(1).random((1, 6), np.float32)
        answer = coordinator.ask({"x": x})
        assert (answer.tier, answer.degraded) == ("cloud", False), answer.reason
        np.testing.assert_allclose(answer.outputs["logits"], truth(x), atol=0.05)  # its second link at any rate
        deep = open_coordinator(edge.grpc_url, cloud=cloud.grpc_url, policy="split:deep@0").ask({"x": x})
        assert (deep.tier, deep.degraded) == ("cloud", False), deep.reason


def test_an_edge_without_a_cloud_is_not_blamed_for_it(node, open_coordinator, truth) -> None:
    tally = Tally(open_coordinator(node.grpc_url, policy="three-tier"), truth)
    tally.ask(3)
    assert set(tally.tiers) == {"device"}
    assert "upstream" in tally.reasons[-1]
    assert tally._coordinator.states == {"edge": "closed"}


def test_killed_and_started_again(process, open_coordinator, truth) -> None:
    tally = Tally(open_coordinator(process.url), truth)
    tally.ask_until("edge")
    process.kill()
    tally.ask(5)
    assert set(tally.tiers[-5:]) == {"device"}
    process.start()
    tally.ask_until("edge")


def test_paused_and_continued(process, open_coordinator, truth) -> None:
    tally = Tally(open_coordinator(process.url), truth)
    tally.ask_until("edge")
    process.send(signal.SIGSTOP)
    tally.ask(4)
    assert set(tally.tiers[-4:]) == {"device"}
    process.send(signal.SIGCONT)
    tally.ask_until("edge")


def test_the_link_cut_and_mended(node, open_coordinator, truth) -> None:
    with LinkEmulator("127.0.0.1:0", node.grpc_url.split("//")[1], Link(50, 2)) as link:
        tally = Tally(open_coordinator(f"grpc://{link.address}"), truth)
        tally.ask_until("edge")
        link.cut(close=True)
        tally.ask(4)
        assert set(tally.tiers[-4:]) == {"device"}
        link.restore()
        tally.ask_until("edge")


def test_a_link_of_1_kbps_and_a_fast_one_again(node, open_coordinator, truth) -> None:
    with LinkEmulator("127.0.0.1:0", node.grpc_url.split("//")[1], Link(50, 2)) as link:
        tally = Tally(open_coordinator(f"grpc://{link.address}"), truth)
        tally.ask_until("edge")
        link.set(Link(0.001, 2))
        tally.ask(4)
        assert set(tally.tiers[-3:]) == {"device"}  # a first one may still be in the bucket's burst
        link.set(Link(50, 2))
        tally.ask_until("edge")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bytes_that_change_on_the_way_never_change_an_answer(node, open_coordinator, truth, direction) -> None:
    with LinkEmulator("127.0.0.1:0", node.grpc_url.split("//")[1], Link(50, 1)) as link:
        tally = Tally(open_coordinator(f"grpc://{link.address}"), truth)
        tally.ask_until("edge")
        for _ in range(12):
            link.flip(direction, 1)
            tally.ask(2)  # each is compared with the truth
        tally.ask_until("edge")


def flipping_proxy(target: str, stop: threading.Event) -> tuple[str, threading.Thread]:
    """Copies bytes both ways and flips a bit in the middle of every tenth piece that is large enough to hold more than
    HTTP/2's own headers: the damage lands in tensors and frames."""
    import selectors
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    host, port = target.split(":")
    pieces = 0

    def serve() -> None:
        nonlocal pieces
        with listener, selectors.DefaultSelector() as selector:
            while not stop.is_set():
                with suppress(TimeoutError):
                    near, _ = listener.accept()
                    far = socket.create_connection((host, int(port)))
                    selector.register(near, selectors.EVENT_READ, far)
                    selector.register(far, selectors.EVENT_READ, near)
                    listener.settimeout(0.0005)
                for key, _ in selector.select(0.001 if selector.get_map() else 0.05):
                    source: Any = key.fileobj
                    try:
                        data = source.recv(65536)
                        if len(data) > 100:
                            pieces += 1
                            if pieces % 10 == 0:
                                middle = len(data) - 20
                                data = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
                        if data:
                            key.data.sendall(data)
                            continue
                    except OSError:
                        pass
                    for end in (source, key.data):
                        with suppress(KeyError, ValueError):
                            selector.unregister(end)
                        end.close()

            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    thread = threading.Thread(target=serve)
    thread.start()
    return f"127.0.0.1:{listener.getsockname()[1]}", thread


def test_a_proxy_that_flips_bits_in_tensors_changes_no_answer(node, open_coordinator, truth) -> None:
    stop = threading.Event()
    address, thread = flipping_proxy(node.grpc_url.split("//")[1], stop)
    try:
        tally = Tally(open_coordinator(f"grpc://{address}"), truth)
        tally.ask_until("edge")
        tally.ask(60)
        assert "edge" in tally.tiers
    finally:
        stop.set()
        thread.join()


def test_a_node_of_another_version_and_the_right_one_again(
    bundle_path, another, node, open_coordinator, truth, free_port
) -> None:
    wrong = Node([another.path], NodeOptions(threads=1, grpc_port=free_port))
    wrong.start()
    try:
        tally = Tally(open_coordinator(wrong.grpc_url), truth)
        tally.ask(3)
        assert set(tally.tiers) == {"device"}
        assert "another bundle" in tally.reasons[-1]
    finally:
        wrong.stop(0.5)
    with Node([bundle_path], NodeOptions(threads=1, grpc_port=free_port)):
        tally.ask_until("edge")


@pytest.mark.parametrize("ours", ["newest", "oldest"])
def test_a_node_with_two_bundles_of_one_name_is_asked_for_ours(
    bundle_path, another, open_coordinator, truth, ours: str
) -> None:
    served = [another.path, bundle_path] if ours == "newest" else [bundle_path, another.path]
    with Node(served, NodeOptions(threads=1)) as both:
        tally = Tally(open_coordinator(both.grpc_url), truth)
        tally.ask(3)
        assert set(tally.tiers) == {"edge"}, tally.reasons


def test_a_refinement_is_shorter_than_the_frame_and_gives_its_answer(make_bundle, tmp_path, unsure, truth) -> None:
    path = make_bundle(tmp_path / "net.edgekit", coded=True)
    settings = {"deadline_ms": 5000, "threads": 1, "policy": "split@0"}
    with Node([path], NodeOptions(threads=1)) as node:
        with Coordinator(path, node.grpc_url, **settings) as plain:
            whole = plain.ask(unsure)
        with Coordinator(path, node.grpc_url, refine=True, **settings) as coordinator:
            refined = coordinator.ask(unsure)
            assert (refined.rates, refined.attempts, refined.degraded) == ((0,), 2, False), refined.reason
            np.testing.assert_array_equal(refined.outputs["logits"], whole.outputs["logits"])
            sure = coordinator.ask({"x": np.ones((1, 6), np.float32)})
            assert (sure.rates, sure.attempts) == ((2,), 1)
            # A node that keeps nothing is sent the whole frame.
            node.catalog.find("net.rest").coarse.keep = lambda *arguments: None
            forgotten = coordinator.ask(unsure)
            assert (forgotten.rates, forgotten.attempts, forgotten.degraded) == ((0,), 3, False), forgotten.reason
            np.testing.assert_array_equal(forgotten.outputs["logits"], whole.outputs["logits"])
            assert coordinator.states == {"edge": "closed"}


def test_a_wrong_token_ends_in_a_local_answer_that_says_so(bundle_path, open_coordinator, truth) -> None:
    token = "correct-horse-battery-staple-1234"
    with Node([bundle_path], NodeOptions(threads=1, security=Security(token=token))) as guarded:
        tally = Tally(open_coordinator(guarded.grpc_url, token="wrong"), truth)
        tally.ask(2)
        assert set(tally.tiers) == {"device"}
        assert "token" in tally.reasons[-1]
        right = Tally(open_coordinator(guarded.grpc_url, token=token), truth)
        right.ask_until("edge")


def test_without_a_local_variant_a_dead_node_is_an_error_by_the_deadline(without_local: Bundle, free_port) -> None:
    with (
        Coordinator(without_local, f"grpc://127.0.0.1:{free_port}", None, "split@0", 200, threads=1) as coordinator,
        pytest.raises((UnreachableError, MismatchError, AuthenticationError), match="edge"),
    ):
        coordinator.ask({"x": np.zeros((1, 6), np.float32)})


def test_many_are_answered_in_order_while_others_are_on_their_way(node, open_coordinator, truth) -> None:
    with LinkEmulator("127.0.0.1:0", node.grpc_url.split("//")[1], Link(50, 20)) as link:
        coordinator = open_coordinator(f"grpc://{link.address}", deadline_ms=2000)
        coordinator.ask({"x": np.zeros((1, 6), np.float32)})
        inputs = [np.random.default_rng(seed).random((1, 6), np.float32) for seed in range(24)]
        answers = list(coordinator.ask_many(({"x": x} for x in inputs), in_flight=6))
        for x, answer in zip(inputs, answers, strict=True):
            np.testing.assert_allclose(answer.outputs["logits"], truth(x), atol=1e-4)
        assert len({answer.request_id for answer in answers}) == 24


def test_auto_goes_up_while_the_link_is_good_and_stays_down_while_it_is_not(node, open_coordinator, truth) -> None:
    with LinkEmulator("127.0.0.1:0", node.grpc_url.split("//")[1], Link(50, 2)) as link:
        coordinator = open_coordinator(
            f"grpc://{link.address}",
            policy="auto",
            limits=PlanLimits(drop=0.05),  # leaves the exits out, whose answers differ
            wrap=lambda name, session: PacedSession(session, 60.0) if name == "whole" else session,
        )
        rng = np.random.default_rng(2)

        def tiers(count: int) -> list[str]:
            found = []
            for _ in range(count):
                x = rng.random((1, 6), np.float32)
                answer = coordinator.ask({"x": x})
                np.testing.assert_allclose(answer.outputs["logits"], truth(x), atol=0.05)
                found.append(answer.tier)
            return found

        assert "edge" in tiers(12)
        link.set(Link(0.002, 300))
        assert tiers(12)[-1] == "device"


def test_closing_ends_every_thread(node, open_coordinator) -> None:
    before = {thread.name for thread in threading.enumerate() if "coordinator" in thread.name}
    coordinator = open_coordinator(node.grpc_url)
    coordinator.ask({"x": np.zeros((1, 6), np.float32)})
    coordinator.close()
    coordinator.close()
    assert {thread.name for thread in threading.enumerate() if "coordinator" in thread.name} == before
