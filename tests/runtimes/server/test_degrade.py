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
from edgekit.bundle.manifest import Manifest, Part, Variant
from edgekit.errors import OverloadedError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Served, Wish
from edgekit.runtimes.server import Node
from edgekit.runtimes.server.model import coarser_parts, open_native
from edgekit.runtimes.server.schedule import BatchOptions

FINE_S, COARSE_S = 0.1, 0.005
CALLERS = 16  # in batches of two the fine part would take 0.8 s for them, more than twice the deadline


class Slow:
    """A session whose runs take so long more."""

    def __init__(self, session: Any, seconds: float) -> None:
        self._session, self._seconds = session, seconds

    def run(self, feeds: Mapping[str, np.ndarray]) -> Any:
        time.sleep(self._seconds)
        return self._session.run(feeds)

    def close(self) -> None:
        self._session.close()


def open_slow(bundle: Bundle, part: Part, threads: int | None) -> Any:
    return Slow(open_native(bundle, part, threads), COARSE_S if part.name == "coarse" else FINE_S)


@pytest.fixture(scope="module")
def ladder_bundle(split_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fine`, the head of the split (twice the input), and `coarse`, losing two points: three times the input."""
    with Bundle.open(split_bundle) as split:
        manifest, head = split.manifest, split.manifest.part("head")
        model = onnx.load(split.part_path("head"))
    files = {"fine": model.SerializeToString()}
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(6, 3, np.float32), "weight"))
    files["coarse"] = model.SerializeToString()
    parts = tuple(
        Part(**{**head.model_dump(), **describe_file(f"{name}.onnx", data).model_dump(), "name": name})
        for name, data in files.items()
    )
    variants = (Variant(name="fine", parts=("fine",)), Variant(name="coarse", parts=("coarse",), drop=2.0))
    changed = {"parts": parts, "variants": variants, "codecs": (), "tiers": {}, "assets": ()}
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


def ask(node: Node, name: str, callers: int, deadline_ms: float) -> list[Served | OverloadedError]:
    """What each answer says of itself, once its numbers are those of the part that it names."""
    call = InferCall(name, {"x": np.ones((1, 6), np.float32)}, Wish(deadline_ms=deadline_ms).parameters())

    def one(client: NodeClient) -> Served | OverloadedError:
        try:
            answer = client.infer(call)
            served = Served.of(answer)
            assert answer.tensors["scaled"][0, 0] == (3 if served.degraded else 2)
            return served
        except OverloadedError as error:
            return error

    with NodeClient(node.grpc_url) as client, ThreadPoolExecutor(callers) as pool:
        return list(pool.map(one, [client] * callers))


@pytest.mark.parametrize("degrade", [True, False])
def test_under_load_coarse_answers_come_before_refusals(
    ladder_bundle: Path, serve: Callable[..., Node], degrade: bool
) -> None:
    node = serve(ladder_bundle, tier="device", open_session=open_slow, degrade=degrade, batch=BatchOptions(max_batch=2))
    got = ask(node, "net.fine", callers=CALLERS, deadline_ms=350)
    answered = [one for one in got if isinstance(one, Served)]
    coarse = [one for one in answered if one.degraded]
    assert all(one.coarser == ("coarse",) for one in coarse)
    assert all(one.coarser == () for one in answered if not one.degraded)
    assert len(coarse) < len(answered)
    if degrade:
        assert coarse
    else:
        assert not coarse and len(answered) < CALLERS


def test_an_idle_node_answers_with_the_part_that_was_asked(ladder_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(ladder_bundle, tier="device", open_session=open_slow, degrade=True)
    [served] = ask(node, "net.fine", callers=1, deadline_ms=5000)
    assert isinstance(served, Served) and not served.degraded and served.coarser == ()
