"""`edgekit run` of a model that writes a text: what it writes alone, by the loop of a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.main import cli
from edgekit.cli.streams import printable

from .steps import HEARD, WRITTEN, open_step, step_bundle, written_alone

PROMPT = "\x02\x03\x05"  # of the eleven symbols that the small model knows


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return step_bundle(tmp_path_factory.mktemp("steps") / "writing.edgekit", WRITTEN, "writing")


def run(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["run", *map(str, words), "--threads", "1"])
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return result


def test_it_goes_on_from_the_text_given_as_the_model_alone_does(writing: Path, tmp_path: Path) -> None:
    [told] = json.loads(run(writing, "-i", PROMPT, "--json").stdout)["results"]
    with open_step(tmp_path, WRITTEN) as session:
        alone = written_alone(session, [ord(symbol) for symbol in PROMPT], 1000)
    assert [ord(symbol) for symbol in told["text"]] == alone[: told["tokens"]]
    assert told["tokens"] > 0
    assert told["steps"] >= told["tokens"] + len(PROMPT)
    assert told["finish"] in ("stop", "loop", "length")


def test_a_file_holds_a_prompt_too_and_several_are_answered_each(writing: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    one, other = json.loads(run(writing, "-i", PROMPT, "-i", tmp_path / "prompt.txt", "--json").stdout)["results"]
    assert one["text"] == other["text"]
    assert printable(PROMPT + one["text"]) in run(writing, "-i", PROMPT).stdout


def test_what_it_cannot_go_on_from_is_told(writing: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in run(writing, "-i", tmp_path / "binary", code=4).stderr
    assert "a prompt of 1200 tokens" in run(writing, "-i", PROMPT * 400, code=11).stderr


@pytest.mark.parametrize(
    "words", [("--trace", "spans.jsonl"), ("--edge", "grpc://127.0.0.1:9"), ("--budget", "5ms"), ("--provider", "cpu")]
)
def test_options_that_would_be_ignored_are_refused(
    writing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "writes text, on this device alone" in run(writing, "-i", PROMPT, *words, code=2).stderr


def test_a_model_that_hears_takes_no_text(tmp_path: Path) -> None:
    hearing = step_bundle(tmp_path / "hearing.edgekit", HEARD, "hearing")
    assert "no file at" in run(hearing, "-i", "a text", code=4).stderr
