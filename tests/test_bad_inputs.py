"""What a user can get wrong, from the command line: each ends with its exit code, the reason and the way out."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import edgekit
from edgekit.cli import main as command_line
from edgekit.errors import EdgekitError, InputError

MODELS = """
import torch
from torch import nn

X = {"x": torch.ones(1, 4)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Branching(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.first(x)
        return self.first(-x)


class Selecting(Net):
    def forward(self, x):
        return self.first(x)[:, : int(x.sum())].reshape(2, -1)


class Leaving(Net):
    def forward(self, x):
        return torch.from_numpy(self.first(x).detach().numpy() + 1)


class Dividing(Net):
    def forward(self, x):
        return self.last(torch.relu(self.first(x))) / (x - x).sum()


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image):
        return self.conv(image).mean((2, 3))


def net():
    return Net(), X


def no_module():
    return [1, 2, 3]


def no_inputs():
    return Net()


def branching():
    return Branching(), X


def selecting():
    return Selecting(), X


def leaving():
    return Leaving(), X


def dividing():
    return Dividing(), X


def damaged():
    module = Net()
    module.last.weight.data[0, 0] = float("nan")
    return module, X


def idle():
    return nn.Identity(), X["x"]


def picture():
    return Picture(), {"image": torch.ones(1, 3, 16, 16)}
"""

Fail = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """(exit code, stderr) of `edgekit ...`, in a folder that holds models.py."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "models", raising=False)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["edgekit", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return int(ended.value.code or 0), re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)

    return call


@pytest.fixture
def fail(run: Callable[..., tuple[int, str]], tmp_path: Path) -> Fail:
    """The message of `edgekit export SOURCE ...`, which has to end with `code`, a hint, and nothing written."""

    def call(source: str, *options: str, code: int) -> str:
        before = sorted(tmp_path.iterdir())
        device = () if "--device" in options else ("--device", "x86-server")
        got, text = run("export", source, *device, *options)
        assert got == code, text
        assert "hint: " in text
        assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == [
            path for path in before if path.name != "__pycache__"
        ]
        return text

    return call


ONNX = ("--format", "onnx")


@pytest.mark.parametrize(
    ("builder", "code", "says"),
    [
        ("no_module", 3, "allowed a torch.nn.Module"),
        ("no_inputs", 3, "example inputs"),
        ("branching", 3, r"models\.py:\d+ in forward: if x\.sum\(\) > 0"),
        ("selecting", 3, r"(?s)models\.py:\d+ in forward.*fixed"),
        ("leaving", 3, r"(?s)models\.py:\d+ in forward.*keep to torch operations"),
        ("dividing", 3, "output .* holds NaN or infinity"),
        ("damaged", 3, r"the weight 'last\.weight' holds NaN"),
        ("nett", 3, r"net"),
        ("idle", 7, "computes nothing"),
    ],
)
def test_a_model_that_cannot_be_taken_is_told_with_the_line_and_the_remedy(
    fail: Fail, builder: str, code: int, says: str
) -> None:
    assert re.search(says, fail(f"models:{builder}", *ONNX, code=code))


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--device", "rasberry-pi"), 2, "did you mean 'raspberry-pi'?"),
        (("--format", "onx"), 2, "did you mean 'onnx'?"),
        (("--quantize", "int9"), 2, "did you mean 'int8'?"),
        (("--max-dorp", "1"), 2, "did you mean --max-drop?"),
        (("--observer", "minmax"), 2, "did you mean 'min-max'?"),
        (("--device", "raspberry-pi-5", "--format", "tensorrt"), 5, "tensorrt"),
        (("--device", "jetson-nano", "--format", "tensorrt", "--quantize", "int8"), 5, "cannot run tensorrt in int8"),
        (("--format", "onnx", "--quantize", "int8"), 4, "int8 needs calibration data, got none"),
        (("-o", "missing/out.edgekit"), 10, "there is no folder"),
    ],
)
def test_a_wrong_option_is_told_with_the_nearest_or_the_allowed(
    fail: Fail, options: tuple[str, ...], code: int, says: str
) -> None:
    assert says in fail("models:net", *options, code=code)


def _rows(path: Path, shape: tuple[int, ...]) -> None:
    np.savez(path, x=np.zeros(shape, np.float32))


def test_calibration_data_that_cannot_be_used_are_told(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "broken").mkdir()
    _rows(tmp_path / "wrong" / "rows.npz", (8, 5))
    Image.new("RGB", (16, 16)).save(tmp_path / "broken" / "good.png")
    (tmp_path / "broken" / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert "empty" in fail("models:net", *ONNX, "--calibration", "empty", code=4)
    assert re.search(r"5.*allowed.*4|\[.*5\]", fail("models:net", *ONNX, "--calibration", "wrong", code=4))
    assert "bad.jpg" in fail("models:picture", *ONNX, "--calibration", "broken", code=4)
    assert "nowhere" in fail("models:net", *ONNX, "--calibration", "nowhere", code=4)


def test_a_missing_extra_comes_with_its_command(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without_litert(name: str, package: str | None = None) -> Any:
        return None if name == "litert_torch" else real(name, package)

    monkeypatch.setattr("edgekit.exporters.base.find_spec", without_litert)
    text = fail("models:net", "--format", "litert", code=6)
    assert 'pip install "edgekit[export]"' in text


def test_an_existing_output_is_kept_and_force_replaces_it(run: Any, fail: Fail, tmp_path: Path) -> None:
    out = tmp_path / "out.edgekit"
    out.write_bytes(b"precious")
    assert "--force" in fail("models:net", *ONNX, "-o", "out.edgekit", code=10)
    assert out.read_bytes() == b"precious"
    code, _ = run("export", "models:net", "-d", "x86-server", *ONNX, "--quantize", "none", "-o", str(out), "--force")
    assert code == 0
    assert edgekit.Bundle.open(out).manifest.name


def test_a_folder_that_cannot_be_written_is_told_at_once(
    fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    real = tempfile.TemporaryFile  # root may write everywhere, so that the system's own answer would be yes

    def locked(dir: Path) -> Any:
        if dir.name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", locked)
    assert "not writable" in fail("models:net", *ONNX, "-o", "locked/out.edgekit", code=10)


def test_a_full_disk_leaves_nothing(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left" in fail("models:net", *ONNX, "--quantize", "none", code=10)


def test_a_full_disk_on_the_way_is_told_too(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    text = fail("models:net", "--device", "raspberry-pi-5", "--format", "executorch", "--quantize", "none", code=10)
    assert "no space left" in text


def test_an_interrupted_export_leaves_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ("edgekit.candidates.time_artifact", "edgekit.pipeline.pack"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            code, text = run("export", "models:net", "-d", "x86-server", *ONNX, "--quantize", "none")
        assert (code, "interrupted" in text) == (130, True)
        assert {path.name for path in tmp_path.iterdir()} <= {"models.py", "__pycache__"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("made") / "net.edgekit"
    edgekit.export(
        torch.nn.Linear(4, 3), torch.ones(1, 4), device="x86-server", format="onnx", quantize="none", output=str(path)
    )
    return path


@pytest.mark.parametrize("harm", ["truncate", "alter"])
def test_a_truncated_or_altered_bundle_is_refused(run: Any, bundle: Path, tmp_path: Path, harm: str) -> None:
    data = bytearray(bundle.read_bytes())
    if harm == "truncate":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    (tmp_path / "harmed.edgekit").write_bytes(data)
    for command in (("verify", "harmed.edgekit"), ("run", "harmed.edgekit", "--input", "models.py")):
        code, text = run(*command)
        assert code == 9, text
        assert "hint: " in text


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"y": np.ones((1, 4), np.float32)}, "allowed"),
        ({"input": np.ones((1, 4), np.float64)}, "float64"),
        ({"input": np.ones((1, 5), np.float32)}, "5"),
        ({}, "input"),
    ],
)
def test_wrong_names_dtypes_and_shapes_at_run_time_say_got_and_allowed(
    bundle: Path, feeds: dict[str, np.ndarray], says: str
) -> None:
    with edgekit.load(bundle) as session, pytest.raises(InputError, match=says) as caught:
        session.run(feeds)
    assert isinstance(caught.value, EdgekitError)
    assert caught.value.exit_code == 11
