from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def test_one_picture_gives_its_labels_best_first(invoke: Invoke, bundle: Path, photos: Path) -> None:
    lines = invoke("run", bundle, "--input", photos / "green" / "200.png").stdout.splitlines()
    assert lines[0].split() == ["label", "probability"]
    assert lines[1].split()[0] == "green"
    assert len([line for line in lines if "%" in line]) == 3
    assert all(stage in lines[-1] for stage in ("preprocess", "inference", "postprocess"))


def test_top_limits_the_labels(invoke_json: InvokeJson, bundle: Path, photos: Path) -> None:
    assert len(invoke_json("run", bundle, "-i", photos / "red" / "200.png", "--top", "2")["top"]) == 2


def test_json_of_one_input_has_its_answer_at_the_top_too(invoke_json: InvokeJson, bundle: Path, photos: Path) -> None:
    payload = invoke_json("run", bundle, "-i", photos / "red" / "200.png", "--threads", "1")
    assert payload["top"][0]["label"] == "red"
    assert 0.99 < payload["top"][0]["probability"] <= 1
    assert set(payload["latency_ms"]) == {"preprocess", "inference", "postprocess"}
    assert payload["results"] == [
        {"input": str(photos / "red" / "200.png"), "top": payload["top"], "latency_ms": payload["latency_ms"]}
    ]
    assert (payload["format"], payload["threads"]) == ("onnx", 1)


def test_a_folder_and_a_file_give_a_line_each(
    invoke: Invoke, invoke_json: InvokeJson, bundle: Path, photos: Path
) -> None:
    arguments = ("run", bundle, "-i", photos, "-i", photos / "red" / "200.png", "--top", "1")
    lines = invoke(*arguments).stdout.splitlines()
    assert len(lines) == 7
    assert all(line.count("\t") == 2 for line in lines)
    assert lines[0].split("\t")[1].startswith("blue ")
    payload = invoke_json(*arguments)
    assert len(payload["results"]) == 7
    assert "top" not in payload


def test_arrays_go_in_as_they_are(invoke_json: InvokeJson, bundle: Path, tmp_path: Path) -> None:
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[:, 2] = 1
    np.save(tmp_path / "image.npy", image)
    np.savez(tmp_path / "feeds.npz", image=image)
    for name in ("image.npy", "feeds.npz"):
        assert invoke_json("run", bundle, "-i", tmp_path / name)["top"][0]["label"] == "blue"


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda path: None, 4),
        (lambda path: path.write_bytes(b"no picture"), 4),
        (lambda path: np.savez(path, picture=np.zeros((1, 3, 8, 8), np.float32)), 11),
        (lambda path: np.savez(path, image=np.zeros((1, 3, 9, 9), np.float32)), 11),
        (lambda path: np.savez(path, image=np.zeros((1, 3, 8, 8), np.int64)), 11),
    ],
    ids=["missing", "undecodable", "wrong name", "wrong shape", "wrong dtype"],
)
def test_bad_input_ends_with_its_code(
    invoke: Invoke, bundle: Path, tmp_path: Path, write: Callable[[Path], object], code: int
) -> None:
    path = tmp_path / ("x.png" if code == 4 else "x.npz")
    write(path)
    result = invoke("run", bundle, "-i", path, code=code)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_an_unknown_part_names_the_nearest(invoke: Invoke, bundle_with_float: Path, photos: Path) -> None:
    result = invoke("run", bundle_with_float, "-i", photos, "--part", "flaot", code=2)
    assert "did you mean 'float'?" in result.stderr


def test_a_token_file_that_is_not_there_is_a_usage_error_as_for_serve(
    invoke: Invoke, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = ("--edge", "grpc://127.0.0.1:1", "--token-file", tmp_path / "missing")
    result = invoke("run", bundle, "-i", photos, *arguments, code=2)
    assert f"cannot read the token file {tmp_path / 'missing'}" in result.stderr


def test_no_input_is_a_usage_error(invoke: Invoke, bundle: Path) -> None:
    result = invoke("run", bundle, code=2)
    assert "--input" in result.stderr
    assert "`edgekit run --help`" in result.stderr


def test_a_bundle_that_the_key_did_not_sign_is_not_run(
    invoke: Invoke, new_bundle: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    for name in ("ours", "theirs"):
        invoke("keygen", tmp_path / name)
    signed = new_bundle(tmp_path / "signed.edgekit", sign_key=tmp_path / "ours")
    invoke("run", signed, "-i", photos, "--key", tmp_path / "ours.pub")
    assert invoke("run", signed, "-i", photos, "--key", tmp_path / "theirs.pub", code=9).stdout == ""


@pytest.mark.parametrize(("budget", "told"), [("0.00001ms", True), ("10s", False)])
def test_an_answer_over_its_budget_is_told(
    invoke: Invoke, bundle_with_float: Path, photos: Path, budget: str, told: bool
) -> None:
    result = invoke("run", bundle_with_float, "--input", photos / "green" / "200.png", "--budget", budget)
    assert ("more than the budget" in result.stderr) == told


def test_an_input_that_fails_leaves_the_others_their_answers(
    invoke: Invoke, invoke_json: InvokeJson, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    broken, wrong = tmp_path / "broken.png", tmp_path / "wrong.npz"
    broken.write_bytes(b"no picture")
    np.savez(wrong, image=np.zeros((1, 3, 9, 9), np.float32))
    inputs = [word for file in (broken, wrong, photos / "red" / "200.png") for word in ("-i", file)]
    result = invoke("run", bundle, *inputs, "--top", "1", code=11)
    assert [line.split("\t")[1].split()[0] for line in result.stdout.splitlines()] == ["red"]
    assert f"error: {broken}: " in result.stderr
    assert f"error: {wrong}: " in result.stderr
    told = invoke_json("run", bundle, *inputs, code=11)["results"]
    assert [entry.get("error", {}).get("exit_code") for entry in told] == [4, 11, None]
    assert told[2]["top"][0]["label"] == "red"
