"""A recurrent step as an ONNX file, small enough to be followed by hand, and the same in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.loop import Carried, Choice, Chunks, Loop
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant
from edgekit.runtimes.onnx_session import OnnxSession
from edgekit.runtimes.session import SessionOptions
from edgekit.tensors import TensorSpec

WINDOW, CONTEXT, WIDTH, SYMBOLS = 5, 2, 7, 11
HOP = WINDOW - CONTEXT
HEARD = Loop(
    carried=(Carried(output="after", input="before", batch_axis=1),),
    feed=Chunks(input="x", hop=HOP, context=CONTEXT),
    max_steps=1000,
)
WRITTEN = Loop(
    carried=(Carried(output="after", input="before", batch_axis=1),),
    feed=Choice(input="x", output="y", start=0, stop=1, encoding="bytes"),
    max_steps=1000,
)


def _weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    shapes = {
        "inward": (WINDOW, WIDTH),
        "embedding": (SYMBOLS, WIDTH),
        "around": (WIDTH, WIDTH),
        "out": (WIDTH, SYMBOLS),
    }
    return {name: (generator.standard_normal(shape) * 1.5).astype(np.float32) for name, shape in shapes.items()}


def step_file(loop: Loop, rows: str | int = "rows") -> bytes:
    """`before` [1, rows, WIDTH] and what is fed -> `y` [rows, SYMBOLS] and `after`: tanh of a sum, and a product."""
    weights = _weights()
    is_heard = isinstance(loop.feed, Chunks)
    first = (
        helper.make_node("MatMul", ["x", "inward"], ["given"])
        if is_heard
        else helper.make_node("Gather", ["embedding", "x"], ["given"])
    )
    fed = (TensorProto.FLOAT, [rows, WINDOW]) if is_heard else (TensorProto.INT64, [rows])
    nodes = [
        first,
        helper.make_node("MatMul", ["before", "around"], ["kept"]),
        helper.make_node("Add", ["given", "kept"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["after"]),
        helper.make_node("Squeeze", ["after", "axes"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "out"], ["y"]),
    ]
    used = ("inward" if is_heard else "embedding", "around", "out")
    graph = helper.make_graph(
        nodes,
        "step",
        [
            helper.make_tensor_value_info("x", *fed),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1, rows, WIDTH]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, SYMBOLS]),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1, rows, WIDTH]),
        ],
        [
            *(numpy_helper.from_array(weights[name], name) for name in used),
            numpy_helper.from_array(np.array([0], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def specs(loop: Loop, rows: str | int = "rows") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    fed = (
        TensorSpec("x", "float32", (rows, WINDOW))
        if isinstance(loop.feed, Chunks)
        else TensorSpec("x", "int64", (rows,))
    )
    state = (1, rows, WIDTH)
    return (fed, TensorSpec("before", "float32", state)), (
        TensorSpec("y", "float32", (rows, SYMBOLS)),
        TensorSpec("after", "float32", state),
    )


def open_step(folder: Path, loop: Loop, rows: str | int = "rows") -> OnnxSession:
    path = folder / "step.onnx"
    path.write_bytes(step_file(loop, rows))
    return OnnxSession(path, *specs(loop, rows), SessionOptions(threads=1))


def step_bundle(path: Path, loop: Loop, name: str = "steps") -> Path:
    data = step_file(loop)
    inputs, outputs = specs(loop)
    part = Part(
        **describe_file("step.onnx", data).model_dump(),
        name="model",
        format="onnx",
        precision="fp32",
        inputs=tuple(map(TensorEntry.of, inputs)),
        outputs=tuple(map(TensorEntry.of, outputs)),
        loop=loop,
    )
    manifest = Manifest(
        name=name,
        task="other",
        device="x86-server",
        parts=(part,),
        variants=(Variant(name="onnx-fp32", parts=("model",)),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source=name, source_sha256="0" * 64, recipe={}
        ),
    )
    return write_bundle(path, manifest, {"parts/step.onnx": data}, {"schema_version": 1}, "<!doctype html>")


def heard_alone(session: OnnxSession, samples: np.ndarray) -> np.ndarray:
    """`y` of each window, one after another, by the session itself. float32 [windows, SYMBOLS]."""
    windows = -(-len(samples) // HOP)
    padded = np.zeros(CONTEXT + windows * HOP, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    state, heard = np.zeros((1, 1, WIDTH), np.float32), []
    for start in range(0, windows * HOP, HOP):
        outputs = session.run({"x": padded[None, start : start + WINDOW], "before": state})
        state = outputs["after"]
        heard.append(outputs["y"][0])
    return np.array(heard)


def written_alone(session: OnnxSession, prompt: list[int], most: int) -> list[int]:
    """The likeliest tokens after `prompt`, until the stop token or `most` of them."""
    state, tokens, logits = np.zeros((1, 1, WIDTH), np.float32), [], np.zeros(SYMBOLS, np.float32)
    fed = [0, *prompt]
    while len(tokens) < most:
        for token in fed:
            outputs = session.run({"x": np.array([token], np.int64), "before": state})
            state, logits = outputs["after"], outputs["y"][0]
        fed = [int(logits.argmax())]
        if fed == [1]:
            break
        tokens += fed
    return tokens
