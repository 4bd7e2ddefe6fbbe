"""Small bundles with golden answers, which the fleet's tests push, roll out and break."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.golden import Golden, write_golden
from edgekit.bundle.manifest import Codec, Manifest, Part, Provenance, Rate, TensorEntry, Tier, Variant
from edgekit.devices.segment import Segment

WIDTH, CLASSES, SAMPLES = 6, 3, 4
GAIN = np.arange(WIDTH * CLASSES, dtype=np.float32).reshape(WIDTH, CLASSES) / 7 - 1


def make_bundle(
    path: Path,
    *,
    name: str = "net",
    scale: float = 2.0,
    wrong: bool = False,
    golden: bool = True,
    padding: int = 0,
    edge: bool = False,
    as_directory: bool = False,
    sign_key: Path | None = None,
    segments: Mapping[str, tuple[Segment, ...]] | None = None,
    drop: float = 0.0,
) -> Path:
    """scores = (x * scale) @ GAIN, float32 [n, WIDTH] -> [n, CLASSES], as one part on the device.

    With `edge` also as head (x * scale) and tail (@ GAIN) on the edge, behind a plain codec. `scale` makes the head
    another file and leaves the tail as it is. `wrong`: the golden answers are not those of the parts. `padding`: so
    many random bytes as an asset, so that there is something that does not change. `segments`: what each part costs,
    and `drop`: what each variant loses, for those who plan.
    """
    files = {"model": _whole(scale)}
    parts = [_part("model", "device", files["model"], "x", "scores", CLASSES)]
    variants = [Variant(name="local", parts=("model",), drop=drop)]
    codecs: list[Codec] = []
    if edge:
        files |= {"head": _one("x", "scaled", WIDTH, "Mul", np.full(WIDTH, scale, np.float32))}
        files |= {"tail": _one("scaled", "scores", CLASSES, "MatMul", GAIN)}
        parts.append(_part("head", "device", files["head"], "x", "scaled", WIDTH))
        parts.append(_part("tail", "edge", files["tail"], "scaled", "scores", CLASSES))
        entry = TensorEntry(name="scaled", dtype="float32", shape=("n", WIDTH))
        rates = tuple(Rate(bytes_mean=size, bytes_p95=size, drop=drop) for size in (60, 40))
        codecs.append(Codec(name="code", kind="plain", features=(entry,), rates=rates))
        variants.append(Variant(name="split", parts=("head", "tail"), codecs=("code",), drop=drop))
    assets = {"padding.bin": np.random.default_rng(7).bytes(padding)} if padding else {}
    entries: tuple[Golden, ...] = ()
    if golden:
        answers = golden_answers(scale, wrong)
        told = {part.name: answers[part.name] for part in parts}
        assets |= {f"golden-{part}.npz": content for part, content in told.items()}
        entries = tuple(
            Golden(part=part, file=f"golden-{part}.npz", samples=SAMPLES, least_sqnr_db=40.0) for part in told
        )
    manifest = Manifest(
        name=name,
        task="classification",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server"} if edge else {},
        parts=tuple(part.model_copy(update={"segments": (segments or {}).get(part.name, ())}) for part in parts),
        variants=tuple(variants),
        codecs=tuple(codecs),
        assets=tuple(describe_file(file, content) for file, content in sorted(assets.items())),
        golden=entries,
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source=name, source_sha256="0" * 64, recipe={}
        ),
    )
    held: dict[str, Path | bytes] = {f"parts/{part}.onnx": data for part, data in files.items()}
    held |= {f"assets/{file}": content for file, content in assets.items()}
    page = f"<!doctype html><title>{name}</title><p>report of {name}</p>"
    return write_bundle(path, manifest, held, {"schema_version": 1}, page, as_directory=as_directory, sign_key=sign_key)


def golden_answers(scale: float, wrong: bool = False) -> dict[str, bytes]:
    """Part -> its asset: SAMPLES of one row each."""
    rows = [np.random.default_rng(seed).standard_normal((1, WIDTH)).astype(np.float32) for seed in range(SAMPLES)]
    scaled = [(row * np.float32(scale)).astype(np.float32) for row in rows]
    scores = [(row @ GAIN + np.float32(wrong)).astype(np.float32) for row in scaled]
    return {
        "model": write_golden([{"x": row} for row in rows], [{"scores": row} for row in scores]),
        "head": write_golden([{"x": row} for row in rows], [{"scaled": row} for row in scaled]),
        "tail": write_golden([{"scaled": row} for row in scaled], [{"scores": row} for row in scores]),
    }


def _whole(scale: float) -> bytes:
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "gain"], ["scores"]),
    ]
    weights = {"scale": np.full(WIDTH, scale, np.float32), "gain": GAIN}
    return _file(nodes, "x", WIDTH, "scores", CLASSES, weights)


def _one(input: str, output: str, width: int, op: str, weight: np.ndarray) -> bytes:
    return _file([helper.make_node(op, [input, "weight"], [output])], input, WIDTH, output, width, {"weight": weight})


def _file(
    nodes: list[onnx.NodeProto], input: str, width: int, output: str, out_width: int, weights: dict[str, np.ndarray]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(input, TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", out_width])],
        [helper.make_tensor(key, TensorProto.FLOAT, w.shape, w.ravel().tolist()) for key, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _part(name: str, tier: Tier, data: bytes, input: str, output: str, width: int) -> Part:
    return Part(
        **describe_file(f"{name}.onnx", data).model_dump(),
        name=name,
        tier=tier,
        format="onnx",
        precision="fp32",
        inputs=(TensorEntry(name=input, dtype="float32", shape=("n", WIDTH)),),
        outputs=(TensorEntry(name=output, dtype="float32", shape=("n", width)),),
    )
