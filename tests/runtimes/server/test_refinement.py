"""Successive refinement at a node: coarse first, then only what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import CodecError, MismatchError
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.codecs.frame import Frame, pack
from edgekit.runtimes.codecs.refinement import encode_refinement
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Wish, frame_call
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.runtimes.server.refinement import CoarseFrames

FINE, COARSE = 0, 1
X = np.random.default_rng(5).normal(size=(1, 6)).astype(np.float32)
WISH = Wish(sender="camera-7")


@dataclass(frozen=True)
class Sender:
    codec: TransformCodec
    digests: tuple[str, str, str]

    def frame(self, rate: int, sequence: int | None = None) -> Frame:
        return Frame(self.codec.encode([X], rate), (X.shape,), rate, *self.digests, sequence=sequence)

    def refining(self, sequence: int) -> Frame:
        payload = encode_refinement(self.codec, [X], COARSE, FINE)
        return Frame(payload, (X.shape,), FINE, *self.digests, coarse=COARSE, sequence=sequence)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Path]) -> Path:
    tables = fit_transform_tables(np.random.default_rng(1).normal(size=(200, 6)), (0.05, 0.45))
    return make_split(tmp_path_factory.mktemp("refined") / "net.edgekit", tables=tables)


@pytest.fixture(scope="module")
def sender(bundle: Path) -> Sender:
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        codec = open_codec(manifest.codec("code-shifted"), opened.asset_path("transform.bin").read_bytes())
    assert isinstance(codec, TransformCodec)
    digests = (manifest.plan_digest("three"), manifest.codec_digest("code-shifted"), manifest.part("tail").sha256)
    return Sender(codec, digests)


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[NodeClient]:
    with Node([bundle], NodeOptions(tier="cloud", threads=1, port=None)) as node, NodeClient(node.grpc_url) as client:
        yield client


def ask(client: NodeClient, frame: Frame, wish: Wish = WISH) -> np.ndarray:
    return client.infer(frame_call("net.tail", [pack(frame)], wish)).tensors["scores"]


def test_a_refined_answer_is_that_of_the_finer_rate(client: NodeClient, sender: Sender) -> None:
    coarse = ask(client, sender.frame(COARSE, sequence=1))
    refined = ask(client, sender.refining(1))
    np.testing.assert_array_equal(refined, ask(client, sender.frame(FINE)))
    assert not np.array_equal(refined, coarse)


def test_a_refinement_of_what_is_not_here_is_a_mismatch(client: NodeClient, sender: Sender) -> None:
    ask(client, sender.frame(COARSE, sequence=2))
    for frame, wish in (
        (sender.refining(3), WISH),
        (sender.refining(2), Wish(sender="another")),
        (sender.refining(2), Wish()),
    ):
        with pytest.raises(MismatchError, match="not here any more"):
            ask(client, frame, wish)


def test_a_codec_that_does_not_refine_says_so(sender: Sender, split_bundle: Path, serve: Callable[..., Node]) -> None:
    with Bundle.open(split_bundle) as opened:
        manifest = opened.manifest
    node = serve(split_bundle, tier="cloud")
    digests = {"plan_digest": manifest.plan_digest("three"), "codec_digest": manifest.codec_digest("code-shifted")}
    with NodeClient(node.grpc_url) as client, pytest.raises(CodecError, match="not refined"):
        ask(client, replace(sender.refining(1), **digests, model_digest=manifest.part("tail").sha256))


def test_what_is_kept_is_bounded_in_number_and_bytes(sender: Sender) -> None:
    frames = [sender.frame(COARSE, sequence=number) for number in range(4)]
    size = len(frames[0].payload)
    for kept in (CoarseFrames(max_kept=2), CoarseFrames(max_bytes=2 * size)):
        for frame in frames:
            kept.keep("a", frame)
        for number, is_kept in enumerate((False, False, True, True)):
            if is_kept:
                assert kept.decode(sender.codec, "a", sender.refining(number))[0].shape == X.shape
            else:
                with pytest.raises(MismatchError):
                    kept.decode(sender.codec, "a", sender.refining(number))


def test_the_same_number_sent_again_takes_no_more_room(sender: Sender) -> None:
    kept = CoarseFrames(max_bytes=2 * len(sender.frame(COARSE).payload))
    kept.keep("a", sender.frame(COARSE, sequence=1))
    for _ in range(5):
        kept.keep("a", sender.frame(COARSE, sequence=2))
    assert kept.decode(sender.codec, "a", sender.refining(1))
