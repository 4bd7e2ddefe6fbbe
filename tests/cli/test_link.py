from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.cli.link import status_text
from edgekit.planning.named_traces import TRACES, trace_named
from edgekit.planning.traces import Conditions
from edgekit.runtimes.link.emulator import LinkState
from edgekit.runtimes.link.traces import read_trace

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]
ANY = "127.0.0.1:0"


@pytest.fixture
def node() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        yield listener


def address(listener: socket.socket) -> str:
    return "{}:{}".format(*listener.getsockname())


@pytest.mark.parametrize("name", TRACES)
def test_a_named_trace_is_written_to_a_file(invoke_json: InvokeJson, tmp_path: Path, name: str) -> None:
    file = tmp_path / "trace.csv"
    payload = invoke_json("link", "--write-trace", name, "-o", file, "--seed", "2")
    assert (payload["trace"], payload["duration_s"], payload["file"]) == (name, 120.0, str(file))
    written = read_trace(file)
    assert (written.time_s, written.pieces) == (trace_named(name, 2).time_s, trace_named(name, 2).pieces)


def test_an_existing_file_is_replaced_only_by_force(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "lte.csv"
    file.write_text("mine")
    invoke("link", "--write-trace", "lte", "-o", file, code=10)
    assert file.read_text() == "mine"
    invoke("link", "--write-trace", "lte", "-o", file, "--force")
    assert read_trace(file).duration_s == 120.0


@pytest.mark.parametrize(("arguments", "code", "words"), [
    ((), 2, "needs --listen"),
    (("--listen", ANY, "--to", ANY), 2, "one of --link and --trace"),
    (("--listen", ANY, "--to", ANY, "--link", "1mbps", "--trace", "lte"), 2, "one of --link and --trace"),
    (("--listen", "0.0.0.0:0", "--to", ANY, "--link", "1mbps"), 2, "--allow-remote"),
    (("--listen", "example.org:0", "--to", ANY, "--link", "1mbps"), 2, "--allow-remote"),
    (("--listen", "nowhere", "--to", ANY, "--link", "1mbps"), 2, "HOST:PORT"),
    (("--listen", ANY, "--to", "nowhere", "--link", "1mbps"), 2, "HOST:PORT"),
    (("--listen", ANY, "--to", ANY, "--link", "fast"), 2, "not a quantity"),
    (("--listen", ANY, "--to", ANY, "--trace", "lt"), 2, "did you mean 'lte'"),
    (("--listen", ANY, "--to", ANY, "--trace", "none.csv"), 4, "cannot read the trace"),
    (("--listen", ANY, "--to", ANY, "--link", "1mbps", "-o", "x.csv"), 2, "--write-trace alone"),
    (("--write-trace", "walk"), 2, "unknown trace"),
])  # fmt: skip
def test_what_cannot_be_a_link_is_refused(invoke: Invoke, arguments: tuple[str, ...], code: int, words: str) -> None:
    assert words in invoke("link", *arguments, code=code).output


def test_a_port_in_use_is_a_node_error(invoke: Invoke, node: socket.socket) -> None:
    result = invoke("link", "--listen", address(node), "--to", ANY, "--link", "1mbps", code=15)
    assert "cannot listen on" in result.output


def test_a_link_without_a_round_trip_is_told_what_is_assumed(invoke: Invoke, node: socket.socket) -> None:
    result = invoke("link", "--listen", ANY, "--to", address(node), "--link", "10mbps", "--duration", "0.1")
    assert "--link 10mbps gives no round-trip time: 0 ms assumed" in result.stderr


def test_it_ends_after_its_duration_and_tells_what_passed(invoke_json: InvokeJson, node: socket.socket) -> None:
    payload = invoke_json("link", "--listen", ANY, "--to", address(node), "--link", "10mbps,20ms", "--duration", "0.1")
    assert payload["elapsed_s"] >= 0.1
    assert (payload["up_bytes"], payload["connections"], payload["is_up"]) == (0, 0, True)
    assert payload["conditions"]["rtt_ms"] == 20.0


def test_once_ends_with_the_trace(invoke: Invoke, tmp_path: Path, node: socket.socket) -> None:
    (tmp_path / "short.csv").write_text("time_s,bandwidth_mbps,rtt_ms\n0,10,1\n0.2,,\n")
    lines = invoke("link", "--listen", ANY, "--to", address(node), "--trace", tmp_path / "short.csv", "--once").stdout
    assert lines.splitlines()[0].endswith("as short")
    assert "0 B up" in lines.splitlines()[-1]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_carries_bytes_until_a_signal_ends_it(node: socket.socket, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "edgekit", "link", "--listen", ANY, "--to", address(node), "--link", "100mbps,0ms"]
    with subprocess.Popen(
        [*command, "--json", "--duration", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        host, port = process.stderr.readline().split()[2].rstrip(",").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as near:
            far, _ = node.accept()
            with far:
                far.settimeout(20)
                near.sendall(b"hello")
                assert far.recv(5, socket.MSG_WAITALL) == b"hello"
                process.send_signal(number)
                payload = json.loads(process.stdout.read())
        assert process.wait(20) == 0
    assert payload["up_bytes"] == 5


def test_the_status_says_what_the_link_is_like() -> None:
    state = LinkState(12.34, Conditions(9.81, 44.0), True, 1_200_000, 30_000, 2, 0)
    assert status_text(state) == "12.3 s  9.81 Mbit/s, 44 ms  up 1.20 MB  down 30.0 kB  2 open"
    state = LinkState(1.0, Conditions(9.81, 44.0, up=False), False, 0, 0, 0, 3)
    assert status_text(state) == "1.0 s  down  up 0 B  down 0 B  0 open  3 refused"
