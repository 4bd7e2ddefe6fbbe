"""Pictures and texts straight to a node: the numbers of `edgekit run`, typed refusals, bounded memory."""

from __future__ import annotations

import json
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tritonclient.utils import InferenceServerException

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.bundle.manifest import (
    Manifest,
    Part,
    Postprocess,
    Provenance,
    TensorEntry,
    TextPreprocess,
    Variant,
)
from edgekit.runtimes.load import load
from edgekit.runtimes.onnx_session import OnnxSession
from edgekit.runtimes.predict import Predictor
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.tensors import object_array
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.runtimes.session import SessionOptions

from .pictures import CONFIG, KINDS, SIDE, encoded, photo

CLASSES = 5
LABELS = tuple(f"kind {index}" for index in range(CLASSES))
PICTURES, TEXTS = "pictures.model", "texts.model"


def _bundle(path: Path, name: str, inputs: list[Any], outputs: list[Any], nodes: list[Any], **manifest: Any) -> Path:
    weights = manifest.pop("weights", [])
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data, files = model.SerializeToString(), manifest.pop("files", {})
    kinds = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}

    def entry(info: Any) -> TensorEntry:
        tensor = info.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        return TensorEntry(name=info.name, dtype=kinds[tensor.elem_type], shape=shape)

    part = Part(
        **describe_file("model.onnx", data).model_dump(),
        name="model",
        format="onnx",
        precision="fp32",
        inputs=tuple(map(entry, inputs)),
        outputs=tuple(map(entry, outputs)),
    )
    described = Manifest(
        name=name,
        task="other",
        device="x86-server",
        parts=(part,),
        variants=(Variant(name="onnx-fp32", parts=("model",)),),
        assets=tuple(describe_file(key.partition("/")[2], content) for key, content in files.items()),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source=name, source_sha256="0" * 64, recipe={}
        ),
        **manifest,
    )
    held = {"parts/model.onnx": data, **files}
    return write_bundle(path, described, held, {"schema_version": 1}, "<!doctype html>")


def picture_bundle(path: Path, batch: str | int = "batch") -> Path:
    """The means of the channels and corners, times a matrix: a classifier of pictures."""
    weight = np.random.default_rng(0).standard_normal((3 * SIDE * SIDE, CLASSES)).astype(np.float32) / SIDE
    return _bundle(
        path,
        "pictures",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])],
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        ],
        weights=[numpy_helper.from_array(weight, "weight")],
        preprocess=CONFIG,
        postprocess=Postprocess(kind="classification", output="scores", labels=LABELS),
    )


def text_bundle(path: Path) -> Path:
    """Sums of token ids where the mask is 1, [batch, 1]."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3, "sits": 4}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = ("input_ids", "attention_mask")
    return _bundle(
        path,
        "texts",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names],
        [helper.make_tensor_value_info("sum", TensorProto.INT64, ["batch", 1])],
        [
            helper.make_node("Mul", list(names), ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axes"], ["sum"], keepdims=1),
        ],
        weights=[numpy_helper.from_array(np.array([1], np.int64), "axes")],
        preprocess=TextPreprocess(max_length=6),
        files={"assets/tokenizer.json": tokenizer.to_str().encode()},
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("media")
    return [picture_bundle(folder / "pictures.edgekit"), text_bundle(folder / "texts.edgekit")]


@pytest.fixture(scope="module")
def node(bundles: list[Path]) -> Iterator[Node]:
    with Node(bundles, NodeOptions(tier="device", threads=1)) as node:
        yield node


def bytes_tensor(kind: Any, name: str, items: list[bytes]) -> list[Any]:
    entry = kind.InferInput(name, [len(items)], "BYTES")
    entry.set_data_from_numpy(np.array(items, object))
    return [entry]


def client(node: Node, kind: Any = over_grpc) -> Any:
    url = node.grpc_url if kind is over_grpc else node.rest_url
    return kind.InferenceServerClient(url.partition("://")[2])


def run_alone(bundle_path: Path, folder: Path, items: list[Any], count: int = CLASSES) -> list[Any]:
    """What `edgekit run` says of each."""
    with Bundle.open(bundle_path) as bundle, load(bundle, threads=1) as session:
        predictor, answers = Predictor(bundle, session), []
        for index, item in enumerate(items):
            source: Any = item
            if isinstance(item, bytes):
                source = folder / f"{index}.bin"
                source.write_bytes(item)
            answers.append(predictor.predict(source, count=count))
        return answers


@pytest.mark.parametrize("kind", [over_http, over_grpc])
def test_every_kind_of_picture_has_the_numbers_of_run(node, bundles, tmp_path, kind):
    items = list(KINDS.values())
    with client(node, kind) as caller:
        result = caller.infer(PICTURES, bytes_tensor(kind, "image", items), parameters={"edgekit_top": 3})
    alone = run_alone(bundles[0], tmp_path, items, count=3)
    scores, top = result.as_numpy("scores"), result.as_numpy("top")
    assert top.shape == (len(items), 3)
    for row, answer in enumerate(alone):
        # One product of 1,728 terms for many rows or for one: each sum may round in another order.
        bound = 1728 * np.finfo(np.float32).eps * np.abs(scores).max()
        np.testing.assert_allclose(scores[row], answer.outputs["scores"][0], rtol=0, atol=bound)
        told = [entry.decode().split(":") for entry in top[row]]
        assert [label for _, _, label in told] == [label for label, _ in answer.top]
        assert [LABELS[int(index)] for _, index, _ in told] == [label for label, _ in answer.top]
        assert [float(share) for share, _, _ in told] == pytest.approx([share for _, share in answer.top], abs=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_one_picture_has_the_bits_of_run(node, bundles, tmp_path, name):
    with client(node) as caller:
        result = caller.infer(PICTURES, bytes_tensor(over_grpc, "image", [KINDS[name]]))
    (alone,) = run_alone(bundles[0], tmp_path, [KINDS[name]])
    np.testing.assert_array_equal(result.as_numpy("scores"), alone.outputs["scores"])


def test_ordinary_tensors_of_the_same_name_are_still_taken(node: Node) -> None:
    entry = over_grpc.InferInput("image", [1, 3, SIDE, SIDE], "FP32")
    entry.set_data_from_numpy(np.zeros((1, 3, SIDE, SIDE), np.float32))
    with client(node) as caller:
        np.testing.assert_array_equal(caller.infer(PICTURES, [entry]).as_numpy("scores"), np.zeros((1, CLASSES)))


@pytest.mark.parametrize("kind", [over_http, over_grpc])
def test_texts_of_several_lengths_have_the_numbers_of_run(node, bundles, tmp_path, kind):
    texts = ["cat sits", "dog", "cat dog cat dog cat dog cat", "unknown cat", "dog sits"]
    with client(node, kind) as caller:
        result = caller.infer(TEXTS, bytes_tensor(kind, "text", [text.encode() for text in texts]))
    wanted = [answer.outputs["sum"] for answer in run_alone(bundles[1], tmp_path, texts)]
    np.testing.assert_array_equal(result.as_numpy("sum"), np.concatenate(wanted))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A small PNG that says it is `side` x `side`."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(100)))
        + _chunk(b"IEND", b"")
    )


HOSTILE = {
    "empty": b"",
    "no image": b"not an image at all",
    "truncated": KINDS["jpeg"][: len(KINDS["jpeg"]) // 2],
    "header only": KINDS["png"][:40],
    "bomb": bomb(60_000),
    "small bomb": bomb(9_600),
    "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "tiff": encoded(photo(20, 20), "TIFF"),
    "float pixels": encoded(Image.fromarray(np.random.default_rng(0).random((8, 8), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused_as_input_and_the_node_goes_on(node, name):
    with client(node) as caller:
        with pytest.raises(InferenceServerException) as caught:
            caller.infer(PICTURES, bytes_tensor(over_grpc, "image", [KINDS["jpeg"], HOSTILE[name]]))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "image 1" in caught.value.message()
        assert caller.infer(PICTURES, bytes_tensor(over_grpc, "image", [KINDS["jpeg"]])).as_numpy("scores").all()


@pytest.mark.parametrize(
    ("model", "name", "items", "why"),
    [
        (PICTURES, "photo", [KINDS["jpeg"]], "'image' alone"),
        (PICTURES, "image", [KINDS["bmp"]] * 17, "of shape [1] to [16]"),
        (PICTURES, "image", [], "of shape [1] to [16]"),
        (TEXTS, "text", [b"\xff\xfe"], "text 0 is not UTF-8"),
        (TEXTS, "image", [KINDS["jpeg"]], "'text' alone"),
    ],
)
def test_what_is_neither_is_refused(node, model, name, items, why):
    with client(node) as caller, pytest.raises(InferenceServerException) as caught:
        caller.infer(model, bytes_tensor(over_grpc, name, items))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert why in caught.value.message()


@pytest.mark.parametrize(("model", "top", "why"), [(TEXTS, 1, "no classifier"), (PICTURES, 6, "allowed 1 to 5")])
def test_labels_are_refused_where_there_are_none(node, model, top, why):
    name, item = ("text", b"cat") if model == TEXTS else ("image", KINDS["png"])
    with client(node) as caller, pytest.raises(InferenceServerException) as caught:
        caller.infer(model, bytes_tensor(over_grpc, name, [item]), parameters={"edgekit_top": top})
    assert why in caught.value.message()


def test_a_model_of_one_takes_many_pictures_one_by_one(tmp_path: Path, serve: Callable[..., Node]) -> None:
    node = serve(picture_bundle(tmp_path / "one.edgekit", batch=1), tier="device")
    items = [KINDS["jpeg"], KINDS["png"], KINDS["grey"]]
    with client(node) as caller:
        scores = caller.infer(PICTURES, bytes_tensor(over_grpc, "image", items)).as_numpy("scores")
    alone = run_alone(tmp_path / "one.edgekit", tmp_path, items)
    np.testing.assert_array_equal(scores, np.concatenate([answer.outputs["scores"] for answer in alone]))


def test_pictures_are_decoded_while_a_batch_runs(bundles: list[Path], serve: Callable[..., Node]) -> None:
    """The model itself waits until the picture of the next request is decoded: without overlap neither would end."""
    decoded: list[int] = []

    class Waiting(OnnxSession):
        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            while nodes and (pool := nodes[0]._decoding).decoded < 2 and not decoded:
                time.sleep(0.001)
            if nodes:
                decoded.append(pool.decoded)
            return super().run(feeds)

    def open_waiting(bundle: Bundle, part: Part, threads: int | None) -> Waiting:
        specs = [tuple(entry.spec() for entry in entries) for entries in (part.inputs, part.outputs)]
        return Waiting(bundle.part_path(part.name), *specs, SessionOptions(threads=threads))

    nodes: list[Node] = []
    node = serve(bundles[0], tier="device", open_session=open_waiting)
    nodes.append(node)

    def ask() -> None:
        call = InferCall(PICTURES, {"image": object_array([KINDS["jpeg"]])}, {"edgekit_deadline_ms": 20_000.0})
        node.engine.infer(call)

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    nodes.clear()
    assert decoded[0] == 2


def test_the_description_tells_what_else_may_be_sent(node: Node) -> None:
    with urllib.request.urlopen(f"{node.rest_url}/openapi.json") as response:
        described = json.load(response)
    told = described["paths"]["/v2/models/{model}/infer"]["post"]["description"]
    assert f"{PICTURES}: one tensor `image` of datatype BYTES" in told
    assert f"{TEXTS}: one tensor `text` of datatype BYTES" in told
    schemas = described["components"]["schemas"]
    assert {"edgekit_top", "edgekit_max_steps"} <= set(
        schemas["InferRequest"]["properties"]["parameters"]["properties"]
    )
    assert "alternative_inputs" in schemas["ModelMetadata"]["properties"]


def test_stages_are_counted_and_shown(bundles: list[Path], serve: Callable[..., Node], tmp_path: Path) -> None:
    spans = tmp_path / "spans.jsonl"
    node = serve(bundles[0], tier="device", port=0, trace=spans)
    with client(node) as caller:
        caller.infer(PICTURES, bytes_tensor(over_grpc, "image", [KINDS["jpeg"]]), parameters={"edgekit_top": 1})
    with urllib.request.urlopen(f"{node.rest_url}/v2/models/{PICTURES}/stats") as response:
        (stats,) = json.load(response)["model_stats"]
    for stage in ("preprocess", "postprocess"):
        assert stats["inference_stats"][stage]["count"] == 1
        assert stats["inference_stats"][stage]["ns"] > 0
    with urllib.request.urlopen(f"{node.rest_url}/metrics") as response:
        metrics = response.read().decode()
    assert f'edgekit_stage_seconds_count{{model="{PICTURES}",stage="preprocess"}} 1.0' in metrics
    with urllib.request.urlopen(f"{node.rest_url}/v2/models/{PICTURES}") as response:
        assert json.load(response)["alternative_inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    node.stop()
    names = {json.loads(line)["name"] for line in spans.read_text().splitlines()}
    assert {"preprocess", "compute", "postprocess"} <= names
