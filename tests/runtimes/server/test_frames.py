"""Frames at the gate of a node: several rates in one request and one batch; damage and drift are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import CodecError, FrameError, InputError, MismatchError
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.codecs.frame import Frame, pack
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Served, Wish, frame_call
from edgekit.runtimes.protocol.tensors import object_array
from edgekit.runtimes.server import Node, NodeOptions

MODEL = "net.tail"


@pytest.fixture(scope="module")
def node(split_bundle: Path) -> Iterator[Node]:
    with Node([split_bundle], NodeOptions(tier="cloud", threads=1)) as node:
        yield node


@pytest.fixture
def client(node: Node) -> Iterator[NodeClient]:
    with NodeClient(node.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def frame_of(split_bundle: Path) -> Callable[..., Frame]:
    """The features before the tail as a frame that fits."""
    with Bundle.open(split_bundle) as opened:
        manifest = opened.manifest
    codec = open_codec(manifest.codec("code-shifted"), None)
    digests = (manifest.plan_digest("three"), manifest.codec_digest("code-shifted"), manifest.part("tail").sha256)

    def make(features: np.ndarray, rate: int = 0) -> Frame:
        return Frame(codec.encode([features], rate), (features.shape,), rate, *digests)

    return make


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 1, 6)).astype(np.float32)


def test_frames_of_several_rates_are_answered_as_one_by_one(client: NodeClient, frame_of: Callable[..., Frame]) -> None:
    frames = [pack(frame_of(x, rate=index % 2)) for index, x in enumerate(samples(8))]
    alone = [client.infer(frame_call(MODEL, [frame])) for frame in frames]
    together = client.infer(frame_call(MODEL, frames))
    np.testing.assert_allclose(
        together.tensors["scores"], np.concatenate([answer.tensors["scores"] for answer in alone]), rtol=1e-5
    )
    assert Served.of(together).rates == (1,)
    assert [Served.of(answer).rates for answer in alone] == [(0,), (1,)] * 4


def test_callers_of_several_rates_at_once_get_their_own_answers(
    node: Node, client: NodeClient, frame_of: Callable[..., Frame]
) -> None:
    frames = [pack(frame_of(x, rate=index % 2)) for index, x in enumerate(samples(40))]
    alone = [client.infer(frame_call(MODEL, [frame])).tensors["scores"] for frame in frames]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda frame: client.infer(frame_call(MODEL, [frame])).tensors["scores"], frames))
    for got, want in zip(answers, alone, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_every_flipped_byte_is_noticed(client: NodeClient, frame_of: Callable[..., Frame]) -> None:
    data = pack(frame_of(samples(1)[0]))
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 0x10
        with pytest.raises((FrameError, MismatchError)):
            client.infer(frame_call(MODEL, [bytes(spoiled)]))


def test_a_cut_frame_is_damaged(client: NodeClient, frame_of: Callable[..., Frame]) -> None:
    with pytest.raises(FrameError):
        client.infer(frame_call(MODEL, [pack(frame_of(samples(1)[0]))[:-3]]))


@pytest.mark.parametrize("what", ["plan", "codec", "model"])
def test_a_frame_of_another_version_is_a_mismatch_that_names_it(
    client: NodeClient, frame_of: Callable[..., Frame], what: str
) -> None:
    drifted = replace(frame_of(samples(1)[0]), **{f"{what}_digest": "ab" * 32})
    with pytest.raises(MismatchError, match=what):
        client.infer(frame_call(MODEL, [pack(drifted)]))


@pytest.mark.parametrize("wish", [Wish(plan="ab" * 32), Wish(bundle="cd" * 32)])
def test_a_request_for_another_plan_or_bundle_is_a_mismatch(
    client: NodeClient, frame_of: Callable[..., Frame], wish: Wish
) -> None:
    with pytest.raises(MismatchError):
        client.infer(frame_call(MODEL, [pack(frame_of(samples(1)[0]))], wish))


def test_a_rate_off_the_ladder_is_a_codec_error(client: NodeClient, frame_of: Callable[..., Frame]) -> None:
    with pytest.raises(CodecError, match="rate 7, allowed 0 to 1"):
        client.infer(frame_call(MODEL, [pack(replace(frame_of(samples(1)[0]), rate=7))]))


def test_a_frame_beside_other_tensors_is_refused(client: NodeClient, frame_of: Callable[..., Frame]) -> None:
    frames = object_array([pack(frame_of(samples(1)[0]))])
    with pytest.raises(InputError, match="alone"):
        client.infer(InferCall(MODEL, {"frame": frames, "shifted": samples(1)[0]}))


def test_raw_features_are_taken_as_well(client: NodeClient, expected: Callable[..., np.ndarray]) -> None:
    x = samples(4)[:, 0]
    answer = client.infer(InferCall(MODEL, {"shifted": x * 2 + 1}))
    np.testing.assert_allclose(answer.tensors["scores"], expected(x), rtol=1e-5, atol=1e-6)
    assert Served.of(answer).rates == ()


def test_over_rest_damage_is_400_and_drift_409(node: Node, frame_of: Callable[..., Frame]) -> None:
    def post(data: bytes) -> httpx.Response:
        raw = len(data).to_bytes(4, "little") + data
        parameters = f'"parameters": {{"binary_data_size": {len(raw)}}}'
        head = f'{{"inputs": [{{"name": "frame", "datatype": "BYTES", "shape": [1], {parameters}}}]}}'.encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return httpx.post(f"{node.rest_url}/v2/models/{MODEL}/infer", content=head + raw, headers=headers)

    frame = frame_of(samples(1)[0])
    assert post(pack(frame)).status_code == 200
    damaged = post(pack(frame)[:-1])
    assert (damaged.status_code, damaged.headers["edgekit-error"]) == (400, "FrameError")
    drifted = post(pack(replace(frame, codec_digest="ab" * 32)))
    assert (drifted.status_code, drifted.headers["edgekit-error"]) == (409, "MismatchError")
    assert "codec" in drifted.json()["error"]
