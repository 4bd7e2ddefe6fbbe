"""A small bundle with everything in it: two parts, a companion, an asset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Manifest, describe_file, write_bundle
from edgekit.bundle.manifest import Part, PartFile, Provenance, TensorEntry, Variant

ARTIFACT = b"\x08\x0a" + bytes(range(256)) * 8
WEIGHTS = b"external weights" * 20
TOKENIZER = b'{"version": "1.0"}'

FILES = {
    "parts/net-int8.onnx": ARTIFACT,
    "parts/net-int8.onnx.data": WEIGHTS,
    "parts/net-fp32.onnx": ARTIFACT + b"float",
    "assets/tokenizer.json": TOKENIZER,
}


def _manifest(files: dict[str, bytes], **changes: object) -> Manifest:
    def line(name: str) -> PartFile:
        return describe_file(name.split("/")[1], files[name])

    image = TensorEntry(name="image", dtype="float32", shape=(1, 4))
    scores = TensorEntry(name="scores", dtype="float32", shape=(1, 2))
    parts = (
        Part(
            **line("parts/net-int8.onnx").model_dump(),
            name="net-int8",
            format="onnx",
            precision="int8",
            companions=(line("parts/net-int8.onnx.data"),),
            inputs=(image,),
            outputs=(scores,),
        ),
        Part(
            **line("parts/net-fp32.onnx").model_dump(),
            name="net-fp32",
            format="onnx",
            precision="fp32",
            inputs=(image,),
            outputs=(scores,),
        ),
    )
    fields: dict[str, object] = {
        "name": "net",
        "task": "classification",
        "device": "raspberry-pi-5",
        "parts": parts,
        "variants": tuple(Variant(name=part.name, parts=(part.name,)) for part in parts),
        "assets": (line("assets/tokenizer.json"),),
        "provenance": Provenance(
            edgekit="0.1.0", versions={}, source_kind="sample", source="net", source_sha256="", recipe={}
        ),
    }
    return Manifest.model_validate({**fields, **changes})


@dataclass(frozen=True)
class Net:
    """What tests write bundles from."""

    files: dict[str, bytes]

    def manifest(self, **changes: object) -> Manifest:
        return _manifest(self.files, **changes)

    def write(self, path: Path, **options: Any) -> Path:
        return write_bundle(path, self.manifest(), self.files, {"schema_version": 1}, "<!DOCTYPE html>", **options)


@pytest.fixture(scope="session")
def net() -> Net:
    return Net(FILES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEKIT_CACHE", str(folder))
    return folder


@pytest.fixture(params=["archive", "directory"])
def as_directory(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "directory")


@pytest.fixture
def bundle_path(net: Net, tmp_path: Path, as_directory: bool) -> Path:
    return net.write(tmp_path / "net.edgekit", as_directory=as_directory)
