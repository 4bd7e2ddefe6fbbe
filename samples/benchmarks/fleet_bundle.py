"""Bundles for the fleet's benchmarks: real ONNX parts with golden answers, of any size, without a build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.golden import Golden, write_golden
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant

WIDTH, SAMPLES = 64, 4


def matrix(seed: int, size_bytes: int) -> np.ndarray:
    """WIDTH rows of random float32, which no compressor makes smaller."""
    columns = max(1, size_bytes // (4 * WIDTH))
    return np.random.default_rng(seed).standard_normal((WIDTH, columns)).astype(np.float32)


def make_bundle(path: Path, name: str, parts: dict[str, np.ndarray]) -> Path:
    """Each part gives x @ its matrix, and knows the right answers."""
    rows = [np.random.default_rng(seed).standard_normal((1, WIDTH)).astype(np.float32) for seed in range(SAMPLES)]
    files, entries, golden, assets = {}, [], [], {}
    for part, weight in parts.items():
        data = _file(weight)
        files[f"parts/{part}.onnx"] = data
        entries.append(
            Part(
                **describe_file(f"{part}.onnx", data).model_dump(),
                name=part,
                tier="device",
                format="onnx",
                precision="fp32",
                inputs=(TensorEntry(name="x", dtype="float32", shape=("n", WIDTH)),),
                outputs=(TensorEntry(name="y", dtype="float32", shape=("n", weight.shape[1])),),
            )
        )
        # The first columns of wide answers would do, but an answer is compared whole: few samples keep it small.
        answers = write_golden([{"x": row} for row in rows[:1]], [{"y": rows[0] @ weight}])
        assets[f"golden-{part}.npz"] = answers
        golden.append(Golden(part=part, file=f"golden-{part}.npz", samples=1, least_sqnr_db=40.0))
    manifest = Manifest(
        name=name,
        task="none",
        device="x86-server",
        parts=tuple(entries),
        variants=tuple(Variant(name=part, parts=(part,)) for part in parts),
        assets=tuple(describe_file(file, content) for file, content in sorted(assets.items())),
        golden=tuple(golden),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source=name, source_sha256="0" * 64, recipe={}
        ),
    )
    held: dict[str, Path | bytes] = {**files, **{f"assets/{file}": content for file, content in assets.items()}}
    page = f"<!doctype html><title>{name}</title>"
    return write_bundle(path, manifest, held, {"schema_version": 1}, page)


def _file(weight: np.ndarray) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "part",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
