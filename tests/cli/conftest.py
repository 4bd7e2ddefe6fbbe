"""Small bundles that run in ONNX Runtime: which colour channel of a picture is the brightest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import (
    FallbackLine,
    Grid,
    HistoryLine,
    Manifest,
    Part,
    Postprocess,
    Preprocess,
    Provenance,
    TensorEntry,
    Variant,
)
from edgekit.cli.main import cli

LABELS = ("red", "green", "blue")
SIZE = 8


def brightest_channel(gain: float = 8.0) -> bytes:
    """float32 [1, 3, 8, 8] -> [1, 3]: the mean of each channel times `gain`, as an ONNX file."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Mul", ["flat", "gain"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightest",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor("gain", TensorProto.FLOAT, [1], [gain])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def make_part(name: str, precision: str, data: bytes) -> Part:
    file = describe_file(f"{name}.onnx", data)
    return Part(
        file=file.file,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        name=name,
        format="onnx",
        precision=precision,
        inputs=(TensorEntry(name="image", dtype="float32", shape=(1, 3, SIZE, SIZE)),),
        outputs=(TensorEntry(name="logits", dtype="float32", shape=(1, 3)),),
    )


def make_bundle(path: Path, *, with_float: bool = False, **settings: Any) -> Path:
    """`settings` go to `write_bundle` (sign_key, force, as_directory)."""
    files = {"main": ("int8", brightest_channel())} | (
        {"float": ("fp32", brightest_channel(9.0))} if with_float else {}
    )
    parts = tuple(make_part(name, precision, data) for name, (precision, data) in files.items())
    manifest = Manifest(
        name="brightest",
        task="classification",
        device="raspberry-pi-5",
        parts=parts,
        variants=tuple(Variant(name=part.name, parts=(part.name,)) for part in parts),
        preprocess=Preprocess(resize=SIZE, crop=SIZE, mean=(127.5,) * 3, std=(127.5,) * 3),
        postprocess=Postprocess(kind="classification", output="logits", labels=LABELS),
        fallbacks=(FallbackLine(layer="conv_3", precision="fp32", why="alone limits the output to 18.5 dB"),),
        grids=tuple(
            Grid(name=f"layer_{n}", kind="weight", bits=8, channels=4, scale_min=0.01, scale_max=0.02, zero_point=0)
            for n in range(12)
        ),
        history=(HistoryLine(name="Capture", detail="7 operators", size_bytes=48),),
        provenance=Provenance(
            edgekit="0.1.0",
            versions={"onnx": "1.23.2"},
            source_kind="callable",
            source="nowhere_at_all:build",
            source_sha256="0" * 64,
            recipe={"device": "raspberry-pi-5", "seed": 0},
        ),
    )
    return write_bundle(
        path,
        manifest,
        {f"parts/{name}.onnx": data for name, (_, data) in files.items()},
        {"schema_version": 1, "bundle": "brightest", "device": "raspberry-pi-5"},
        "<!doctype html><title>brightest</title>",
        **settings,
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "brightest.edgekit")


@pytest.fixture(scope="session")
def bundle_with_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "both.edgekit", with_float=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures a class, in folders named after the labels; one of them lies in the wrong folder."""
    root = tmp_path_factory.mktemp("photos")
    for number, label in enumerate(LABELS):
        (root / label).mkdir()
        for shade in (200, 250):
            pixels = np.full((12, 16, 3), 20, np.uint8)
            pixels[..., number if (label, shade) != ("blue", 250) else 0] = shade
            Image.fromarray(pixels).save(root / label / f"{shade}.png")
    return root


@pytest.fixture(scope="session")
def new_bundle() -> Callable[..., Path]:
    return make_bundle


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Result]:
    """Runs the command line in this process; stdout and stderr are apart."""

    def run(*arguments: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return run


@pytest.fixture(scope="session")
def invoke_json(invoke: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """The one object on stdout."""

    def run(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
        payload = json.loads(invoke(*arguments, "--json", code=code).stdout)
        assert isinstance(payload, dict)
        assert payload["schema_version"] == 1
        return payload

    return run
