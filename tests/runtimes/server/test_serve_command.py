"""`edgekit serve` as a process: what it prints, and how it ends."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from edgekit.cli.ending import DOUBLED_S
from edgekit.cli.main import cli
from edgekit.runtimes.server import NodeOptions
from tests.runtimes.server.slow import make_slow

SLOW, CALLERS, TURNS = "/v2/models/slow.whole/infer", 8, 20_000.0  # half a second or so
SLOW_ROW = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [TURNS]}]}
Start = Callable[..., "tuple[subprocess.Popen[str], dict[str, Any]]"]


@pytest.fixture
def start(split_bundle: Path) -> Iterator[Start]:
    """The process, and the object that it printed at its start."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, bundle: Path = split_bundle) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--json", "--threads", "1", *words]
        # A shell's background job ignores SIGINT, and its children would too.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, heard)
        started.append(process)
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            text += line
        return process, json.loads(text)

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slow(tmp_path_factory.mktemp("slow") / "slow.edgekit")


def until_inside(told: dict[str, Any], waiting: int) -> None:
    """So many requests wait behind the one that runs."""
    ends = time.monotonic() + 30
    while f'edgekit_queue_depth{{model="slow.whole"}} {waiting}.0' not in httpx.get(f"{told['rest']}/metrics").text:
        assert time.monotonic() < ends, "they never waited"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_serves_and_ends_well(start: Start, how: signal.Signals) -> None:
    process, told = start("--tier", "cloud", "--port", "0", "--grpc-port", "0")
    assert [model["name"] for model in told["models"]] == ["net.middle", "net.tail"]
    assert told["grpc"].startswith("grpc://127.0.0.1:")
    assert httpx.get(f"{told['rest']}/v2/health/ready").json() == {"ready": True}
    process.send_signal(how)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "draining" in said and "stopped" in said and "Traceback" not in said


def test_asking_twice_to_end_cuts_off_nothing_that_is_inside(start: Start, slow_bundle: Path) -> None:
    """As `timeout` does it, which signals the process and its group."""
    process, told = start("--tier", "device", "--port", "0", "--grpc-port", "0", bundle=slow_bundle)
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(httpx.post, f"{told['rest']}{SLOW}", json=SLOW_ROW, timeout=50) for _ in range(2)]
        until_inside(told, 1)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        answers = [one.result() for one in inside]
    _, said = process.communicate(timeout=50)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert process.returncode == 0 and said.splitlines()[-1] == "stopped", said
    assert "Traceback" not in said


def test_ctrl_c_while_it_drains_refuses_what_waits_and_ends_well(start: Start, slow_bundle: Path) -> None:
    words = ("--tier", "device", "--port", "0", "--grpc-port", "0", "--max-batch", "1", "--grace", "600")
    process, told = start(*words, bundle=slow_bundle)
    with ThreadPoolExecutor(CALLERS) as pool:
        inside = [pool.submit(httpx.post, f"{told['rest']}{SLOW}", json=SLOW_ROW, timeout=50) for _ in range(CALLERS)]
        until_inside(told, CALLERS - 1)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "draining" not in (line := process.stderr.readline()):
            assert line, "it ended"
        time.sleep(1.1 * DOUBLED_S)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=50)
        statuses = [one.result().status_code for one in inside if one.exception() is None]
    assert process.returncode == 0 and said.splitlines()[-1] == "stopped; some requests were cut off", said
    assert "Traceback" not in said
    # Some ran before; far from all could in that time.
    assert statuses.count(200) < CALLERS
    assert set(statuses) <= {200, 503}


def test_a_hangup_serves_what_lies_there_by_then(
    start: Start, split_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    place, beside = tmp_path / "net.edgekit", tmp_path / "coming.edgekit"
    shutil.copy(split_bundle, place)
    process, told = start("--tier", "cloud", "--port", "0", "--grpc-port", "0", bundle=place)
    shutil.copy(other_bundle, beside)
    beside.replace(place)
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    while "version 2" not in (line := process.stderr.readline()):
        assert line, "it ended"
    assert httpx.get(f"{told['rest']}/v2/models/net.tail").json()["versions"] == ["1", "2"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_degrading_where_no_part_is_coarser_is_told_to_change_nothing(start: Start) -> None:
    process, told = start("--tier", "cloud", "--port", "0", "--grpc-port", "0", "--degrade")
    assert [model["coarser"] for model in told["models"]] == [[], []]
    assert process.stderr is not None
    while "--degrade changes nothing here" not in (line := process.stderr.readline()):
        assert line, "it ended"


def test_a_hangup_to_a_bundle_that_is_none_is_told_once_and_serves_on(
    start: Start, split_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "net.edgekit"
    shutil.copy(split_bundle, place)
    process, told = start("--tier", "cloud", "--port", "0", "--grpc-port", "0", bundle=place)
    place.write_bytes(b"no bundle")
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    said = []
    while "what was served stays" not in (line := process.stderr.readline()):
        assert line, "it ended"
        said.append(line)
    assert httpx.get(f"{told['rest']}/v2/models/net.tail/ready").status_code == 200
    process.send_signal(signal.SIGTERM)
    _, after = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not [line for line in (*said, after) if str(place) in line]


def invoke(*words: str | Path, code: int) -> str:
    result = CliRunner().invoke(cli, ["serve", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_a_taken_port_ends_with_15_and_a_hint(split_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option, other in (("--port", "--grpc-port"), ("--grpc-port", "--port")):
            said = invoke(split_bundle, "--threads", "1", option, str(port), other, "0", code=15)
            assert f"choose another {option}" in said


def test_an_open_address_without_token_and_tls_ends_with_15(split_bundle: Path) -> None:
    assert "without --token-file and --tls" in invoke(split_bundle, "--host", "0.0.0.0", code=15)


def test_a_bundle_that_is_none_ends_with_9(tmp_path: Path) -> None:
    invoke(tmp_path / "missing.edgekit", code=9)


def test_a_nodes_process_switches_threads_soon_and_collects_all_rarely(tmp_path: Path) -> None:
    thresholds, interval_s = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(700, 10, 10)
    sys.setswitchinterval(0.005)
    try:
        invoke(tmp_path / "missing.edgekit", code=9)  # what it sets for itself comes before the bundles
        assert gc.get_threshold() == (700, 10, 100)
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval_s)


@pytest.mark.parametrize("words", [("--tls", "cert.pem"), ("--upstream", "http://cloud:1"), ("--tier", "moon")])
def test_options_that_cannot_be_end_with_2(split_bundle: Path, words: tuple[str, str]) -> None:
    invoke(split_bundle, *words, code=2)


def test_one_port_for_both_protocols_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    said = invoke(tmp_path / "missing.edgekit", "--port", "8101", "--grpc-port", "8101", code=2)
    assert "the port 8101 for REST and for gRPC" in said and "--grpc-port 8102" in said


def test_two_free_ports_may_both_be_asked_for_by_0() -> None:
    assert NodeOptions(port=0, grpc_port=0).port == 0


@pytest.mark.parametrize("option", ["--token-file", "--upstream-token-file"])
def test_a_token_file_that_is_not_there_ends_with_2(split_bundle: Path, tmp_path: Path, option: str) -> None:
    assert "cannot read the token file" in invoke(split_bundle, option, tmp_path / "missing", code=2)


def test_a_missing_package_ends_with_6_and_names_the_extra(split_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    assert 'pip install "edgekit[serve]"' in invoke(split_bundle, code=6)
