"""`edgekit run --edge` against nodes that refuse: what is answered, what is said, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgekit.bundle import Bundle, write_bundle
from edgekit.cli.main import cli
from edgekit.errors import DeadlineError
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.server import Node, NodeOptions, Security

TOKEN = "correct-horse-battery-staple-1234"


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feeds") / "x.npz"
    np.savez(path, x=np.ones((1, 6), np.float32))
    return path


@pytest.fixture(scope="module")
def guarded(bundle_path: Path) -> Iterator[Node]:
    with Node([bundle_path], NodeOptions(threads=1, security=Security(token=TOKEN))) as node:
        yield node


@pytest.fixture(scope="module")
def other_version(another) -> Iterator[Node]:
    with Node([another.path], NodeOptions(threads=1)) as node:
        yield node


def run(bundle: Path, feeds: Path, node: Node, *words: str | Path, code: int = 0) -> Result:
    arguments = ["run", bundle, "-i", feeds, "--edge", node.grpc_url, "--deadline", "5s", "--threads", "1", *words]
    result = CliRunner().invoke(cli, [str(word) for word in arguments])
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return result


def token_file(folder: Path, token: str) -> Path:
    path = folder / "token"
    path.write_text(token)
    return path


@pytest.mark.parametrize("policy", [(), ("--policy", "auto"), ("--policy", "cascade")])
def test_a_wrong_token_is_told_and_the_device_answers(
    bundle_path, feeds, guarded: Node, tmp_path: Path, policy: tuple[str, ...]
) -> None:
    wrong = token_file(tmp_path, "wrong")
    result = run(bundle_path, feeds, guarded, "--token-file", wrong, *policy)
    assert "answered by the device" in result.stdout
    assert f"warning: the edge was not used, authentication failed: {guarded.grpc_url}: " in result.stderr
    assert "a wrong token" in result.stderr and "hint: check the token" in result.stderr


def test_another_version_is_told_and_the_device_answers(bundle_path, feeds, other_version: Node) -> None:
    result = run(bundle_path, feeds, other_version)
    assert "answered by the device" in result.stdout
    assert "the edge was not used, it does not hold this bundle" in result.stderr
    assert other_version.grpc_url in result.stderr and "hint: serve and run the same bundle" in result.stderr


def test_json_holds_the_refusal_too(bundle_path, feeds, guarded: Node, tmp_path: Path) -> None:
    result = run(bundle_path, feeds, guarded, "--json", "--token-file", token_file(tmp_path, "wrong"))
    payload = json.loads(result.stdout)
    (refusal,) = payload["refusals"]
    assert (refusal["tier"], refusal["kind"], payload["answer"]["tier"]) == ("edge", "AuthenticationError", "device")
    assert "a wrong token" in refusal["message"] and refusal["hint"]


@pytest.mark.parametrize("policy", ["split", "split@1", "offload", "three-tier"])
def test_a_policy_that_needs_the_node_ends_with_16(
    bundle_path, feeds, guarded: Node, other_version: Node, tmp_path: Path, policy: str
) -> None:
    wrong = token_file(tmp_path, "wrong")
    result = run(bundle_path, feeds, guarded, "--policy", policy, "--token-file", wrong, "--json", code=16)
    assert json.loads(result.stdout)["error"]["kind"] == "AuthenticationError"
    assert f"--policy {policy} needs the edge" in result.stderr and "a wrong token" in result.stderr
    result = run(bundle_path, feeds, other_version, "--policy", policy, "--json", code=16)
    assert json.loads(result.stdout)["error"]["kind"] == "MismatchError"


def test_the_right_token_says_nothing(bundle_path, feeds, guarded: Node, tmp_path: Path) -> None:
    right = token_file(tmp_path, TOKEN)
    result = run(bundle_path, feeds, guarded, "--policy", "split", "--token-file", right, "--json")
    payload = json.loads(result.stdout)
    assert (payload["refusals"], payload["answer"]["tier"], payload["answer"]["degraded"]) == ([], "edge", False)
    assert result.stderr == ""


def test_a_node_that_holds_both_versions_refuses_neither(bundle_path, another, feeds) -> None:
    with Node([bundle_path, another.path], NodeOptions(threads=1)) as both:
        for bundle in (bundle_path, another.path):
            payload = json.loads(run(bundle, feeds, both, "--policy", "split", "--json").stdout)
            assert (payload["refusals"], payload["answer"]["tier"]) == ([], "edge")


def test_each_input_has_its_deadline_and_one_that_misses_it_ends_nothing(
    bundle_path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.npz" for number in range(3)]
    for file in files:
        np.savez(file, x=np.ones((1, 6), np.float32))
    asked = []

    def ask(self: Coordinator, feeds: object, deadline_ms: float | None = None) -> object:
        asked.append(feeds)
        if len(asked) == 2:
            raise DeadlineError("no answer within 40 ms: nothing had answered")
        return really(self, feeds, deadline_ms)

    really = Coordinator.ask
    monkeypatch.setattr(Coordinator, "ask", ask)
    words = [word for file in files for word in ("-i", str(file))]
    command = ["run", str(bundle_path), *words, "--variant", "local", "--deadline", "5s", "--threads", "1"]
    result = CliRunner().invoke(cli, command)
    assert (result.exit_code, len(asked)) == (16, 3)
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(files[0]), str(files[2])]
    assert f"error: {files[1]}: no answer within 40 ms" in result.stderr


def test_a_node_that_is_down_is_told_with_the_reason(bundle_path, feeds) -> None:
    words = ["run", str(bundle_path), "-i", str(feeds), "--edge", "grpc://127.0.0.1:9", "--deadline", "5s", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "the edge does not answer (grpc://127.0.0.1:9: connection refused, nothing listens there)" in result.stderr
    assert "failed to connect" not in result.output


@pytest.mark.parametrize("policy", ["offload", "split"])
def test_a_policy_that_needs_a_node_that_is_down_says_who_answered_instead(bundle_path, feeds, policy: str) -> None:
    words = ["run", str(bundle_path), "-i", str(feeds), "--edge", "grpc://127.0.0.1:9", "--deadline", "5s"]
    result = CliRunner().invoke(cli, [*words, "--policy", policy])
    assert result.exit_code == 0, result.output
    assert "answered by the device" in result.stdout and "degraded: " in result.stdout
    assert f"warning: --policy {policy} needs the edge, which does not answer (" in result.stderr
    assert "this device answered instead" in result.stderr and "hint: start the edge's node" in result.stderr


def test_a_node_that_holds_part_of_another_bundle_is_named(bundle_path, another, feeds, tmp_path: Path) -> None:
    """Its variants but one are ours, as where it was exported again with other options."""
    with Bundle.open(bundle_path) as ours:
        parts = {part.name: part for part in ours.manifest.parts} | {"all": another.manifest.part("all")}
        manifest = ours.manifest.model_copy(update={"parts": tuple(parts.values())})
        files = {f"parts/{part.file}": ours.part_path(name).read_bytes() for name, part in parts.items()}
    files["parts/all.onnx"] = another.part_path("all").read_bytes()
    path = write_bundle(tmp_path / "again.edgekit", manifest, files, {"schema_version": 1}, "<!doctype html>")
    with Node([path], NodeOptions(threads=1)) as node:
        result = run(bundle_path, feeds, node)
        assert "note: the edge holds another bundle; left out, as not the same there: 'offload'" in result.stderr
        assert "was not used" not in result.stderr
        assert "another bundle" not in run(bundle_path, feeds, node, "--policy", "split").stderr
