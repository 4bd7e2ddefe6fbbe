"""`edgekit run --trace` and `edgekit trace --node`, with real nodes: what a user types, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgekit.cli.main import cli
from edgekit.runtimes.server import Node, NodeOptions, Security

TOKEN = "correct-horse-battery-staple-1234"


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feeds") / "x.npz"
    np.savez(path, x=np.ones((1, 6), np.float32))
    return path


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    return path


@pytest.fixture(scope="module")
def node(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    spans = tmp_path_factory.mktemp("node") / "edge.jsonl"
    with Node([bundle_path], NodeOptions(threads=1, trace=spans, security=Security(token=TOKEN))) as started:
        yield started


def edgekit(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return result


def test_a_run_names_its_trace_and_trace_shows_it_with_what_the_node_keeps(
    bundle_path: Path, feeds: Path, token: Path, node: Node, tmp_path: Path
) -> None:
    device = tmp_path / "device.jsonl"
    remote = ("--edge", node.grpc_url, "--token-file", token, "--policy", "split@0", "--deadline", "20s")
    run = edgekit("run", bundle_path, "-i", feeds, "--threads", "1", "--trace", device, "--json", *remote)
    payload = json.loads(run.stdout)
    trace_id = payload["trace_id"]
    assert trace_id == payload["answer"]["trace_id"] and len(trace_id) == 32

    asked = ("--node", node.rest_url, "--token-file", token)
    shown = json.loads(edgekit("trace", trace_id[:16], "--from", device, *asked, "--json").stdout)
    assert (shown["trace_id"], shown["tiers"], shown["model"]) == (trace_id, ["device", "edge"], "net")
    assert sum(stage["ms"] for stage in shown["stages"]) == pytest.approx(shown["total_ms"], abs=1e-6)
    stages = {(stage["stage"], stage["where"]) for stage in shown["stages"]}
    assert {("preprocess", "device"), ("head", "device"), ("uplink", "device → edge"), ("compute", "edge")} <= stages

    text = edgekit("trace", "last", "--from", device, *asked).stdout
    assert text.startswith(f"trace {trace_id}  ") and "send → edge" in text and "answered by the edge" in text
    assert trace_id[:12] in edgekit("trace", *asked).stdout, "the node alone knows it too"


def test_a_terminal_run_says_how_to_look_at_it(bundle_path: Path, feeds: Path, tmp_path: Path) -> None:
    device = tmp_path / "device.jsonl"
    run = edgekit("run", bundle_path, "-i", feeds, "--threads", "1", "--trace", device)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("trace ")]
    trace_id = line.removeprefix("trace ")
    assert f"edgekit trace {trace_id[:12]} --from {device}" in run.stderr
    assert "compute" in edgekit("trace", trace_id, "--from", device).stdout
    several = edgekit("run", bundle_path, "-i", feeds, "-i", feeds, "--threads", "1", "--trace", device)
    ids = [line.split("\ttrace ")[1] for line in several.stdout.splitlines()]
    assert len({trace_id, *ids}) == 3


def test_a_run_without_trace_names_none(bundle_path: Path, feeds: Path) -> None:
    run = edgekit("run", bundle_path, "-i", feeds, "--threads", "1")
    assert "trace" not in run.stdout
    assert "trace_id" not in json.loads(edgekit("run", bundle_path, "-i", feeds, "--threads", "1", "--json").stdout)


def test_a_run_that_fails_still_leaves_its_span(bundle_path: Path, tmp_path: Path) -> None:
    device, wrong = tmp_path / "device.jsonl", tmp_path / "wrong.npz"
    np.savez(wrong, x=np.ones((1, 7), np.float32))
    run = edgekit("run", bundle_path, "-i", wrong, "--trace", device, code=11)
    assert "InputError" in edgekit("trace", "last", "--from", device).stdout, run.output


def test_a_node_asks_trace_for_its_token(node: Node, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    assert "no token" in edgekit("trace", "--node", node.rest_url, code=16).stderr
    assert "a wrong token" in edgekit("trace", "--node", node.rest_url, "--token-file", wrong, code=16).stderr


def test_a_file_that_cannot_be_written_ends_a_run_before_it_begins(
    bundle_path: Path, feeds: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    run = edgekit("run", bundle_path, "-i", feeds, "--trace", tmp_path / "file" / "device.jsonl", code=10)
    assert "cannot write" in run.stderr and run.stdout == ""
