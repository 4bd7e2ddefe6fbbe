"""A coarser part of the bundle answers before a request is refused, and the answer says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.bundle.manifest import Codec, Manifest, Part, Provenance, Rate, TensorEntry, Variant
from edgekit.errors import DeadlineError, OverloadedError, RemoteError
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.codecs.frame import Frame, pack
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Served, Wish, frame_call
from edgekit.runtimes.protocol.tensors import object_array
from edgekit.runtimes.server import Node
from edgekit.runtimes.server.decoding import MediaOptions
from edgekit.runtimes.server.model import coarser_parts, open_native
from edgekit.runtimes.server.schedule import BatchOptions

from .pictures import CONFIG, SIDE, encoded, photo

FINE_S, COARSE_S = 0.1, 0.005
CALLERS = 16  # in batches of two the fine part would take 0.8 s for them, more than twice the deadline


class Slow:
    """A session whose runs take so long more."""

    def __init__(self, session: Any, seconds: float) -> None:
        self._session, self._seconds = session, seconds

    def run(self, feeds: Mapping[str, np.ndarray]) -> Any:
        time.sleep(self._seconds)
        return self._session.run(feeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def open_slow(bundle: Bundle, part: Part, threads: int | None) -> Any:
    return Slow(open_native(bundle, part, threads), COARSE_S if part.name == "coarse" else FINE_S)


@pytest.fixture(scope="module")
def ladder_bundle(split_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fine`, the head of the split (twice the input), and `coarse`, losing two points: three times the input. Both
    take tensors and frames."""
    with Bundle.open(split_bundle) as split:
        manifest, head = split.manifest, split.manifest.part("head")
        model = onnx.load(split.part_path("head"))
    files = {"fine": model.SerializeToString()}
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(6, 3, np.float32), "weight"))
    files["coarse"] = model.SerializeToString()
    parts = tuple(
        Part(**{**head.model_dump(), **describe_file(f"{name}.onnx", data).model_dump(), "name": name, "tier": "edge"})
        for name, data in files.items()
    )
    rates = (Rate(bytes_mean=60, bytes_p95=60, drop=0.0),)
    coded = Codec(name="code-x", kind="plain", features=head.inputs, rates=rates)
    variants = (
        Variant(name="fine", parts=("fine",), codecs=("code-x",)),
        Variant(name="coarse", parts=("coarse",), codecs=("code-x",), drop=2.0),
    )
    tiers = {"edge": "x86-server"}
    changed = {"parts": parts, "variants": variants, "codecs": (coded,), "tiers": tiers, "assets": ()}
    made = Manifest(**{**{name: getattr(manifest, name) for name in type(manifest).model_fields}, **changed})
    held = {f"parts/{name}.onnx": data for name, data in files.items()}
    folder = tmp_path_factory.mktemp("ladder")
    return write_bundle(folder / "net.edgekit", made, held, {"schema_version": 1}, "<!doctype html>")


def test_the_coarser_parts_of_a_part_are_those_that_lose_more(ladder_bundle: Path, split_bundle: Path) -> None:
    with Bundle.open(ladder_bundle) as bundle:
        fine, coarse = bundle.manifest.part("fine"), bundle.manifest.part("coarse")
        assert coarser_parts(bundle.manifest, fine) == [coarse]
        assert coarser_parts(bundle.manifest, coarse) == []
    with Bundle.open(split_bundle) as bundle:
        assert coarser_parts(bundle.manifest, bundle.manifest.part("tail")) == []


def tensors(bundle: Path, deadline_ms: float) -> InferCall:
    return InferCall("net.fine", {"x": np.ones((1, 6), np.float32)}, Wish(deadline_ms=deadline_ms).parameters())


def frames(bundle: Path, deadline_ms: float) -> InferCall:
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    payload = open_codec(manifest.codec("code-x"), None).encode([np.ones((1, 6), np.float32)], 0)
    digests = (manifest.plan_digest("fine"), manifest.codec_digest("code-x"), manifest.part("fine").sha256)
    return frame_call("net.fine", [pack(Frame(payload, ((1, 6),), 0, *digests))], Wish(deadline_ms=deadline_ms))


def ask(node: Node, call: InferCall, callers: int) -> list[Served | RemoteError]:
    """What each answer says of itself, once its numbers are those of the part that it names."""

    def one(client: NodeClient) -> Served | RemoteError:
        try:
            answer = client.infer(call)
            served = Served.of(answer)
            assert answer.tensors["scaled"][0, 0] in (0, 3 if served.degraded else 2)
            return served
        except (OverloadedError, DeadlineError) as error:
            return error

    with NodeClient(node.grpc_url) as client, ThreadPoolExecutor(callers) as pool:
        return list(pool.map(one, [client] * callers))


Call = Callable[[Path, float], InferCall]


@pytest.mark.parametrize("call", [tensors, frames])
@pytest.mark.parametrize("degrade", [True, False])
def test_under_load_coarse_answers_come_before_refusals(
    ladder_bundle: Path, serve: Callable[..., Node], degrade: bool, call: Call
) -> None:
    node = serve(ladder_bundle, open_session=open_slow, degrade=degrade, batch=BatchOptions(max_batch=2))
    got = ask(node, call(ladder_bundle, 350), CALLERS)
    answered = [one for one in got if isinstance(one, Served)]
    coarse = [one for one in answered if one.degraded]
    assert all(one.coarser == ("coarse",) for one in coarse)
    assert all(one.coarser == () for one in answered if not one.degraded)
    assert len(coarse) < len(answered)
    if degrade:
        assert coarse
    else:
        assert not coarse and len(answered) < CALLERS


@pytest.mark.parametrize("call", [tensors, frames])
def test_a_far_deadline_is_answered_coarsely_before_a_full_queue_refuses(
    ladder_bundle: Path, serve: Callable[..., Node], call: Call
) -> None:
    """As every device of ours asks, which gives a request half a minute where its user gives none."""
    node = serve(ladder_bundle, open_session=open_slow, degrade=True, batch=BatchOptions(max_batch=2, queue=CALLERS))
    got = ask(node, call(ladder_bundle, 30_000), CALLERS)
    answered = [one for one in got if isinstance(one, Served)]
    assert len(answered) == CALLERS
    assert 0 < sum(one.degraded for one in answered) < CALLERS


def test_pictures_that_take_longer_to_decode_than_the_model_to_run_fill_the_queue_too(
    tmp_path: Path, serve: Callable[..., Node]
) -> None:
    """On a processor that decodes and runs them, a coarser answer leaves more of it to decoding."""
    options = {"tier": "device", "degrade": True, "open_session": open_slow}
    node = serve(picture_ladder(tmp_path), **options, batch=BatchOptions(queue=CALLERS), media=MediaOptions(threads=1))
    picture = object_array([encoded(photo(800, 800), "PNG")])
    got = ask(node, InferCall("net.fine", {"image": picture}, Wish(deadline_ms=30_000).parameters()), CALLERS)
    answered = [one for one in got if isinstance(one, Served)]
    assert len(answered) == CALLERS
    assert 0 < sum(one.degraded for one in answered) < CALLERS


def picture_ladder(folder: Path) -> Path:
    """`fine` and `coarse` of a picture: zeros."""
    shape: tuple[str | int, ...] = ("batch", 3, SIDE, SIDE)
    files = {}
    for name, times in (("fine", 0.0), ("coarse", -0.0)):
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
                onnx.helper.make_node("Flatten", ["mean"], ["flat"]),
                onnx.helper.make_node("Mul", ["flat", "times"], ["scaled"]),
            ],
            name,
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [onnx.helper.make_tensor_value_info("scaled", onnx.TensorProto.FLOAT, ["batch", 3])],
            [onnx.helper.make_tensor("times", onnx.TensorProto.FLOAT, [1], [times])],
        )
        opsets = [onnx.helper.make_opsetid("", 17)]
        files[name] = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    parts = tuple(
        Part(
            **describe_file(f"{name}.onnx", data).model_dump(),
            name=name,
            format="onnx",
            precision="fp32",
            inputs=(TensorEntry(name="x", dtype="float32", shape=shape),),
            outputs=(TensorEntry(name="scaled", dtype="float32", shape=("batch", 3)),),
        )
        for name, data in files.items()
    )
    manifest = Manifest(
        name="net",
        task="none",
        device="x86-server",
        parts=parts,
        variants=(Variant(name="fine", parts=("fine",)), Variant(name="coarse", parts=("coarse",), drop=2.0)),
        preprocess=CONFIG,
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="net", source_sha256="0" * 64, recipe={}
        ),
    )
    held = {f"parts/{name}.onnx": data for name, data in files.items()}
    return write_bundle(folder / "pictures.edgekit", manifest, held, {"schema_version": 1}, "<!doctype html>")


def test_an_idle_node_answers_with_the_part_that_was_asked(ladder_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(ladder_bundle, open_session=open_slow, degrade=True)
    [served] = ask(node, tensors(ladder_bundle, 5000), callers=1)
    assert isinstance(served, Served) and not served.degraded and served.coarser == ()
