"""The whole build flow on networks of a few hundred parameters: from a module to a verified bundle that runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit.bundle import Bundle
from edgekit.bundle.cache import cache_root
from edgekit.bundle.golden import closeness_db, read_golden
from edgekit.bundle.manifest import Postprocess
from edgekit.bundle.signature import generate_key
from edgekit.errors import QualityError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import judge
from edgekit.pipeline import ExportResult, export_recipe
from edgekit.recipe import Recipe
from edgekit.runtimes.load import load


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 12, 3, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, image: Tensor) -> Tensor:
        features = nn.functional.relu6(self.norm(self.stem(image)))
        return self.head(torch.relu(self.body(features)).mean((2, 3)))


class Products(nn.Module):
    """Three linear layers; `outlier` blows up one value between the first two, which the second takes back."""

    def __init__(self, outlier: float) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        with torch.no_grad():
            self.first.weight[0] *= outlier
            self.second.weight[:, 0] /= outlier

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def samples(name: str, shape: tuple[int, ...], count: int, seed: int) -> tuple[Sample, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple({name: torch.randn(shape, generator=generator)} for _ in range(count))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    data = samples("image", (1, 3, 8, 8), 40, 1)
    return Model(
        "net",
        Net().eval(),
        dict(data[0]),
        output_names=("logits",),
        calibration=data[:24],
        held_out=data[24:],
        postprocess=Postprocess(kind="classification", output="logits", labels=("a", "b", "c", "d")),
    )


def export(model: Model, output: Path, **options: Any) -> ExportResult:
    progress = options.pop("progress", lambda step, done, total: None)
    values = {"device": "x86-server", "format": "onnx", "output": str(output), **options}
    return export_recipe(Recipe.of({"source": model.name, **values}), module=model, progress=progress)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(model, tmp_path_factory.mktemp("made") / "net.edgekit", quantize="int8", include_float=True)


def run_all(bundle: Bundle, data: tuple[Sample, ...]) -> dict[str, np.ndarray]:
    with edgekit.load(bundle) as session:
        rows = [session.run({name: value.numpy() for name, value in sample.items()}) for sample in data]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def test_what_the_bundle_computes_is_what_its_report_says(made: ExportResult, model: Model) -> None:
    bundle = Bundle.open(made.bundle.path)
    rows = [model.evolve_quietly(module=model.module).forward(sample) for sample in model.held_out]
    reference = {"logits": np.concatenate([row["logits"].numpy() for row in rows])}
    quality = judge(model, reference, run_all(bundle, model.held_out))
    said = made.summary["quality"]
    assert said["samples"] == len(model.held_out)
    # The report's reference has its batch norm folded: float rounding apart, and int8 stands far below that.
    assert said["sqnr_db"] == pytest.approx(quality.sqnr_db, abs=0.01)
    assert said["value"] == pytest.approx(quality.top1_agreement)


def test_the_summary_has_what_export_json_promises(made: ExportResult) -> None:
    summary = json.loads(json.dumps(made.to_json()))
    assert summary["bundle"] == str(made.bundle.path)
    for part in summary["parts"]:
        assert part["size_bytes"] > 0
        assert {"name", "file", "format", "tier", "sha256"} <= part.keys()
    assert {"sqnr_db", "samples", "reference"} <= summary["quality"].keys()
    latency = summary["latency_ms"]
    assert latency["host"] > 0 and latency["float_host"] > 0
    (predicted,) = latency["predicted"]
    assert predicted["device"] == "x86-server"
    assert predicted["low"] < predicted["p50"] < predicted["high"]
    assert summary["fallbacks"] == []
    assert summary["seconds"] > 0 and summary["peak_memory_bytes"] > 10**7


def test_every_part_comes_with_golden_answers_that_it_gives_again(made: ExportResult) -> None:
    bundle = made.bundle
    assert {golden.part for golden in bundle.manifest.golden} == {part.name for part in bundle.manifest.parts}
    for golden in bundle.manifest.golden:
        inputs, answers = read_golden(bundle.asset_path(golden.file).read_bytes())
        assert len(inputs) == golden.samples > 1
        with load(bundle, part=golden.part) as session:
            for feeds, wanted in zip(inputs, answers, strict=True):
                got = session.run(feeds)
                assert closeness_db(wanted, got) >= golden.least_sqnr_db
                # Another input's answer is not taken for it.
                assert closeness_db({name: -value for name, value in wanted.items()}, got) < golden.least_sqnr_db


def test_the_float_twin_is_packed_where_asked(made: ExportResult) -> None:
    assert [(part["name"], part["precision"]) for part in made.summary["parts"]] == [
        ("model", "int8"),
        ("float", "fp32"),
    ]


def test_the_same_export_twice_gives_the_same_manifest_and_parts(
    made: ExportResult, model: Model, tmp_path: Path
) -> None:
    again = export(model, tmp_path / "again.edgekit", quantize="int8", include_float=True, directory=True)
    assert again.bundle.manifest.to_bytes() == made.bundle.manifest.to_bytes()
    folder = tmp_path / "again.edgekit"
    assert (folder / "manifest.json").read_bytes() == made.bundle.manifest.to_bytes()
    parts = {part.file: part.sha256 for part in made.bundle.manifest.parts}
    assert {path.name for path in (folder / "parts").iterdir()} == set(parts)
    assert not any(word in (folder / "manifest.json").read_text() for word in ("seconds", "_ms", "peak_rss"))


def test_a_signed_bundle_names_its_key(model: Model, tmp_path: Path) -> None:
    key = tmp_path / "key"
    public = generate_key(key)
    result = export(model, tmp_path / "signed.edgekit", quantize="none", sign=str(key))
    assert result.bundle.signed_by is not None
    assert public is not None


def test_auto_tries_every_format_and_says_why_each_loser_lost(model: Model, tmp_path: Path) -> None:
    result = export(model, tmp_path / "auto.edgekit", device="jetson-orin-nano", format="auto")
    rows = result.summary["candidates"]
    assert {row["format"] for row in rows} == {"tensorrt", "onnx"}
    (winner,) = (row for row in rows if row["chosen"])
    assert [(part["format"], part["precision"]) for part in result.summary["parts"]] == [
        (winner["format"], winner["precision"])
    ]
    assert all(row["why_not"] for row in rows if not row["chosen"])
    built = [row for row in rows if row["predicted_ms"] is not None]
    twin = next(row for row in built if row["format"] == winner["format"] and row["precision"] == "fp32")
    assert winner["predicted_ms"] <= twin["predicted_ms"], "the GPU's own time decides, not this machine's"


def test_int8_that_is_no_faster_here_loses_to_float_and_the_report_says_so(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgekit.candidates.time_artifact",
        lambda artifact, model, threads: 2.0 if artifact.precision == "int8" else 1.0,
    )
    result = export(model, tmp_path / "slow.edgekit")
    assert result.summary["parts"][0]["precision"] == "fp32"
    (lost,) = (row for row in result.summary["candidates"] if row["precision"] == "int8")
    assert lost["why_not"] == "no faster than float: 2 ms against 1 ms here"


def test_without_calibration_data_auto_leaves_static_int8_out_and_says_so(model: Model, tmp_path: Path) -> None:
    bare = replace(model, calibration=(), held_out=(), output_names=())
    bare = replace(bare, postprocess=None)
    result = export(bare, tmp_path / "bare.edgekit")
    (left_out,) = (row for row in result.summary["candidates"] if row["precision"] == "int8")
    assert "needs calibration data" in left_out["why_not"]
    assert not left_out["chosen"]


@pytest.fixture(scope="module")
def products() -> Callable[[float], Model]:
    def build(outlier: float) -> Model:
        torch.manual_seed(0)
        data = samples("x", (1, 6), 48, 2)
        return Model("products", Products(outlier), dict(data[0]), calibration=data[:32], held_out=data[32:])

    return build


def test_the_layer_that_ruins_int8_stays_in_float_and_is_listed(
    products: Callable[[float], Model], tmp_path: Path
) -> None:
    """`second` reads fifteen small values beside one 3,000 times as large: no 8-bit grid holds both."""
    result = export(products(3000.0), tmp_path / "kept.edgekit", quantize="int8", min_sqnr=25.0, learned_rounding=False)
    (line,) = result.summary["fallbacks"]
    assert line["layer"] == "linear_1"
    assert line["precision"] == "float32"
    assert float(line["why"].split()[-2]) < 25.0
    assert result.summary["quality"]["sqnr_db"] >= 25.0
    assert [entry.layer for entry in result.bundle.manifest.fallbacks] == ["linear_1"]


def test_where_the_limit_cannot_be_met_nothing_is_written_and_an_old_bundle_survives(
    products: Callable[[float], Model], tmp_path: Path
) -> None:
    old = tmp_path / "old.edgekit"
    old.write_bytes(b"the last good one")
    with pytest.raises(QualityError, match="allowed 200") as caught:
        export(products(1.0), old, quantize="int8", min_sqnr=200.0, force=True)
    assert caught.value.exit_code == 8
    assert {name for name, _ in caught.value.layers} <= {"linear", "linear_1", "linear_2", "relu", "relu_1"}
    assert caught.value.layers == sorted(caught.value.layers, key=lambda row: row[1])
    assert "--max-drop" in caught.value.hint
    assert old.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [old]


def test_an_interrupted_export_leaves_no_bundle_and_goes_on_where_it_stopped(
    products: Callable[[float], Model], tmp_path: Path
) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step == "learn rounding" and done == 2:
            raise KeyboardInterrupt

    unfinished = cache_root() / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        export(products(1.0), tmp_path / "out.edgekit", quantize="int8", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    finished = list(unfinished.rglob("*.npz"))
    assert finished, "the layers that were done are kept"
    result = export(products(1.0), tmp_path / "out.edgekit", quantize="int8")
    straight = export(products(1.0), tmp_path / "straight.edgekit", quantize="int8")
    assert result.bundle.manifest.parts[0].sha256 == straight.bundle.manifest.parts[0].sha256
    assert not list(unfinished.rglob("*.npz"))


def test_the_python_call_takes_a_module_a_loader_and_options(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.randn(24, 6), batch_size=4)
    bundle = edgekit.export(
        Products(1.0),
        torch.randn(1, 6),
        calibration=loader,
        device="raspberry-pi-5",
        format="onnx",
        quantize="int8-dynamic",
        output=str(tmp_path / "python.edgekit"),
        report=False,
    )
    (spec,) = bundle.manifest.parts[0].inputs
    with edgekit.load(bundle) as session:
        (output,) = session.run({spec.name: np.zeros((1, 6), np.float32)}).values()
    assert output.shape == (1, 5)
    assert math.isfinite(float(output.sum()))


@pytest.mark.parametrize("quantize", ["auto", "fp16"])
def test_a_module_without_calibration_data_is_exported_all_the_same(tmp_path: Path, quantize: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    bundle = edgekit.export(
        module,
        torch.rand(1, 3, 8, 8),
        device="jetson-orin-nano" if quantize == "fp16" else "x86-server",
        format="tensorrt" if quantize == "fp16" else "onnx",
        quantize=quantize,
        output=str(tmp_path / "net.edgekit"),
    )
    assert edgekit.Bundle.open(bundle.path).digest == bundle.digest
    assert bundle.report["quality"]["sqnr_db"] > (60 if quantize == "fp16" else 30)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_the_opset_asked_for_is_the_one_written(model: Model, tmp_path: Path, opset: int) -> None:
    result = export(model, tmp_path / "old.edgekit", quantize="none", opset=opset)
    import onnx

    written = onnx.load(str(result.bundle.part_path()))
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [opset]


def test_an_opset_between_those_that_can_be_written_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opset 15, allowed 13, 17, 18"):
        export(model, tmp_path / "odd.edgekit", quantize="none", opset=15)
