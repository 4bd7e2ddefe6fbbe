"""`export --engine torch`: which parts bring a program, that it passed the gate, and who cannot ask for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import programs
from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.errors import ExportError, QualityError, UsageError
from edgekit.model import Model
from edgekit.pipeline import export_recipe
from edgekit.recipe import Recipe
from edgekit.runtimes.load import load
from edgekit.runtimes.torch_engine import PROGRAM_SUFFIX, TorchOptions, open_torch
from edgekit.zoo.fashion import fashion_cnn


@pytest.fixture(scope="module")
def model() -> Model:
    found = fashion_cnn()
    return replace(found, held_out=found.held_out[:16], labels=found.labels[:16])


def export(model: Model, output: Path, **options: Any) -> Bundle:
    values = {
        "source": model.name, "device": "raspberry-pi-4", "format": "onnx", "quantize": "none", "report": False,
        "bottleneck": "transform" if "cloud" in options else "auto", "max_drop": 10.0, "engine": "torch",
        "output": str(output), **options,
    }  # fmt: skip
    return export_recipe(Recipe.of(values), module=model).bundle


def program_files(part: Part) -> list[str]:
    return [file.file for file in part.companions if file.file.endswith(PROGRAM_SUFFIX)]


def test_every_part_above_the_device_brings_one_and_no_other(model: Model, tmp_path: Path) -> None:
    bundle = export(
        model,
        tmp_path / "net.edgekit",
        edge="x86-server",
        cloud="x86-server",
        split="features.5",
        bottleneck="transform",
    )
    tiers = {part.tier for part in bundle.manifest.parts}
    assert tiers == {"device", "edge", "cloud"}
    for part in bundle.manifest.parts:
        assert len(program_files(part)) == (0 if part.tier == "device" else 1), part.name


def test_on_a_server_the_whole_model_brings_one_though_the_winner_is_quantized(model: Model, tmp_path: Path) -> None:
    bundle = export(model, tmp_path / "net.edgekit", device="x86-server", quantize="int8")
    part = bundle.manifest.part()
    assert part.precision == "int8" and len(program_files(part)) == 1
    image = {"image": model.held_out[0]["image"].numpy()}
    options = TorchOptions(threads=1, compile=False, cache_dir=tmp_path)
    with open_torch(bundle, part, options) as engine, load(bundle, threads=1) as session:
        found, quantized = engine.run(image)["logits"], session.run(image)["logits"]
    with torch.no_grad():
        wanted = model.forward(model.held_out[0])["logits"].numpy()
    # the program is float: some fifty operators that each round to 24 bits; the artifact beside it is not
    bound = 50 * np.finfo(np.float32).eps * np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= bound < np.abs(quantized - wanted).max()


def test_without_the_option_there_is_none(model: Model, tmp_path: Path) -> None:
    bundle = export(model, tmp_path / "net.edgekit", cloud="x86-server", split="none", engine="runtime")
    assert not any(program_files(part) for part in bundle.manifest.parts)


def test_a_device_that_is_no_server_is_told_to_name_one(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--engine torch, and raspberry-pi-4 is no server") as caught:
        export(model, tmp_path / "net.edgekit")
    assert "--edge" in caught.value.hint and not (tmp_path / "net.edgekit").exists()


def test_a_program_that_answers_otherwise_ends_the_export(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of a net with one weight changed by a hundredth, in the place of the net's own."""
    write = programs.write_torch_program

    def changed(given: Model, directory: Path) -> Path:
        graph = given.copy_graph()
        with torch.no_grad():
            next(iter(graph.parameters())).mul_(1.01)
        return write(given.evolve_quietly(module=graph), directory)

    monkeypatch.setattr(programs, "write_torch_program", changed)
    with pytest.raises(QualityError, match=r"the torch program of fashion-cnn.*allowed 50"):
        export(model, tmp_path / "net.edgekit", device="x86-server")
    assert not (tmp_path / "net.edgekit").exists()


def test_a_trained_onnx_file_has_no_program(model: Model, tmp_path: Path) -> None:
    torch.onnx.export(
        torch.nn.Linear(4, 2).eval(), (torch.rand(1, 4),), str(tmp_path / "net.onnx"), dynamo=False, verbose=False
    )
    recipe = {"source": str(tmp_path / "net.onnx"), "device": "x86-server", "format": "onnx", "quantize": "none"}
    with pytest.raises(ExportError, match="float torch graphs"):
        export_recipe(Recipe.of({**recipe, "engine": "torch", "output": str(tmp_path / "net.edgekit")}))
