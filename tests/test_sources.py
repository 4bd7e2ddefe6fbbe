from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgekit.errors import DataError, NumericsError, SourceError, UnknownNameError
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.sources import resolve

BUILDERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x, scale=None):
        return {"sum": self.layer(x), "half": x / 2}

def build():
    torch.manual_seed(0)
    return Net(), torch.ones(1, 4)

def alone():
    return Net()

def broken():
    raise RuntimeError("the disk is on fire")

def number():
    return 3

def three():
    return Net(), torch.ones(1, 4), 5

instance = Net()
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.layer(x) if scale is None else self.layer(x) * scale


class Picture(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that no other test has imported."""
    name = f"builders_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(BUILDERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_callable_in_the_working_directory_gives_module_and_inputs(package: str) -> None:
    model = resolve(f"{package}:build")
    assert (model.name, list(model.example_inputs), model.output_names) == ("net", ["x"], ("sum", "half"))
    assert (model.source.kind, model.source.reference) == ("callable", f"{package}:build")
    assert resolve(f"{package}:build").source.digest == model.source.digest


def test_example_inputs_may_come_from_the_caller(package: str) -> None:
    assert resolve(f"{package}:alone", torch.ones(3, 4)).example_inputs["x"].shape == (3, 4)
    assert resolve(f"{package}:instance", {"x": torch.ones(3, 4)}).name == "net"
    with pytest.raises(SourceError, match="no example inputs") as caught:
        resolve(f"{package}:alone")
    assert "(module, torch.rand(1, 3, 224, 224))" in str(caught.value.hint)


def test_a_callable_that_raises_shows_its_error(package: str) -> None:
    with pytest.raises(SourceError, match="RuntimeError: the disk is on fire") as caught:
        resolve(f"{package}:broken")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("attribute", "message"), [("number", "gives a int"), ("three", "a tuple of 3"), ("biuld", "did you mean 'build'")]
)
def test_what_a_callable_may_not_give(package: str, attribute: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolve(f"{package}:{attribute}")


def test_a_missing_module_names_the_nearest(package: str) -> None:
    with pytest.raises(SourceError, match=f"did you mean '{package}'"):
        resolve(f"{package}s:build")
    with pytest.raises(SourceError, match="no module 'nowhere_at_all'"):
        resolve("nowhere_at_all.models:build")


def test_a_module_whose_import_fails_shows_why(package: str) -> None:
    Path(f"{package}_bad.py").write_text("1 / 0\n", encoding="utf-8")
    Path(f"{package}_needy.py").write_text("import a_package_of_nobody\n", encoding="utf-8")
    with pytest.raises(SourceError, match="ZeroDivisionError"):
        resolve(f"{package}_bad:build")
    with pytest.raises(SourceError, match="needs 'a_package_of_nobody'"):
        resolve(f"{package}_needy:build")


def test_a_module_in_hand_is_named_after_its_forward() -> None:
    model = resolve(Net(), (torch.ones(1, 4), torch.ones(1, 2)), name="mine")
    assert (model.name, list(model.example_inputs), model.output_names) == ("mine", ["x", "scale"], ("output",))
    assert list(resolve(Net(), {"scale": torch.ones(1, 2), "x": torch.ones(1, 4)}).example_inputs) == ["x", "scale"]


def test_a_module_keeps_its_training_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    module[0].eval()
    resolve(module, torch.ones(1, 4))
    assert [part.training for part in module.modules()] == [True, False, True]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "no example inputs"),
        ((), "no example inputs"),
        ({"y": torch.ones(1, 4)}, "no parameter 'y'"),
        ((torch.ones(1, 4),) * 3, "3 example inputs, and forward takes 2"),
        (("a",), "'x' is a str"),
        (torch.ones(1, 5), "fails on its example inputs: RuntimeError"),
    ],
)
def test_example_inputs_that_do_not_fit(inputs: object, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolve(Net(), inputs)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(SourceError, match="got a list"):
        resolve([1, 2])  # type: ignore[arg-type]


def test_a_damaged_weight_is_named() -> None:
    module = Net()
    module.layer.bias.data[1] = math.nan
    with pytest.raises(NumericsError, match=r"layer\.bias"):
        resolve(module, torch.ones(1, 4))


def test_minus_infinity_in_a_mask_is_no_damage() -> None:
    module = Net()
    module.register_buffer("mask", torch.full((2, 2), -math.inf))
    assert resolve(module, torch.ones(1, 4)).output_names == ("output",)


def test_an_unknown_sample_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'efficientnet-lite0'"):
        resolve("efficientnet-lite")


@pytest.mark.parametrize(
    ("name", "message"),
    [("weights.pth", "without the network"), ("notes.txt", "is no model"), ("broken.pt2", "not an exported program")],
)
def test_files_that_are_no_models(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(SourceError, match=message):
        resolve(str(tmp_path / name))


def test_a_wrong_path_and_a_bare_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing at"):
        resolve(str(tmp_path / "model.pt2"))
    with pytest.raises(SourceError, match=r"no config\.json"):
        resolve(tmp_path)


def test_an_exported_program_keeps_names_and_dynamic_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Net().eval()
    args = (torch.randn(2, 4), torch.randn(2, 2))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, args, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "net.pt2")
    model = Capture()(resolve(tmp_path / "net.pt2"))
    assert (model.name, list(model.example_inputs)) == ("net", ["x", "scale"])
    assert model.dynamic == {"x": {0: "batch"}, "scale": {0: "batch"}}
    assert model.output_specs[0].shape == ("batch", 2)
    inputs = {"x": torch.randn(5, 4), "scale": torch.randn(5, 2)}
    assert torch.equal(model.forward(inputs)["output"], module(**inputs))


def test_a_folder_of_photographs_calibrates_an_image_model(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (40, 50), (30 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
    model = resolve(Picture(), torch.zeros(1, 3, 32, 32), calibration=tmp_path)
    assert (len(model.calibration), len(model.held_out)) == (6, 2)
    assert model.preprocess is not None


def test_calibration_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[1, 3, 9, 9\]"):
        resolve(Picture(), torch.zeros(1, 3, 8, 8), calibration=[torch.zeros(3, 9, 9)])


def test_a_model_passes_through_with_less_calibration() -> None:
    samples = tuple({"x": torch.full((1, 4), float(value))} for value in range(8))
    model = Model("m", Net().eval(), {"x": torch.ones(1, 4)}, ("output",), calibration=samples)
    assert resolve(model) is model
    kept = resolve(model, calibration_samples=4).calibration
    assert [float(sample["x"][0, 0]) for sample in kept] == [0, 2, 4, 6]


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_a_pt2_that_would_run_something_when_unpickled_is_refused(tmp_path: Path) -> None:
    good, bad, mark = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "mark"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),)), good)
    hostile = io.BytesIO()
    torch.save(((Hostile(mark),), {}), hostile)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            target.writestr(name, hostile.getvalue() if "sample_inputs" in name else source.read(name))
    with pytest.raises(SourceError, match="not an exported program"):
        resolve(str(bad))
    assert not mark.exists()
    assert resolve(str(good)).name == "good"
