"""Frames at mixed rates: decoded in one batch where the tail runs, with the codec's own values and the same answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.errors import CodecError
from edgekit.runtimes.codecs.frame import Frame, pack
from edgekit.runtimes.codecs.rows import RATES, CodedRows
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Served, Wish, frame_call, model_name
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.runtimes.server.batching import Batcher
from edgekit.runtimes.server.model import Link, open_link
from edgekit.runtimes.server.schedule import BatchOptions
from edgekit.runtimes.torch_engine import TorchOptions, open_torch
from edgekit.runtimes.torch_engine.frames import FrameReader
from edgekit.runtimes.torch_engine.lane import Lane
from edgekit.runtimes.torch_engine.streams import Processor

Feeds = dict[str, np.ndarray]
EAGER = TorchOptions(compile=False, threads=1)


@pytest.fixture(scope="module")
def link(cnn: Bundle, tail: Part) -> Link:
    variant = next(entry for entry in cnn.manifest.variants if entry.parts[-1] == tail.name)
    found = open_link(cnn, variant.codecs[0])
    assert isinstance(found.codec, TransformCodec)
    return found


@pytest.fixture(scope="module")
def payloads(link: Link, features: Feeds) -> list[tuple[bytes, int]]:
    """One a picture, at every rate in turn."""
    [rows] = features.values()
    rates = [number % len(link.entry.rates) for number in range(len(rows))]
    return [(link.codec.encode([rows[at : at + 1]], rate), rate) for at, rate in enumerate(rates)]


@pytest.fixture(scope="module")
def coded(link: Link, features: Feeds, payloads: list[tuple[bytes, int]]) -> list[CodedRows]:
    [rows] = features.values()
    codec, shape = link.codec, rows[:1].shape
    assert isinstance(codec, TransformCodec)
    return [CodedRows.of(link.digest, shape, codec.symbols(data, shape, rate), rate) for data, rate in payloads]


@pytest.fixture(scope="module")
def decoded(link: Link, features: Feeds, payloads: list[tuple[bytes, int]]) -> np.ndarray:
    """By the codec, one by one."""
    [rows] = features.values()
    return np.concatenate([link.codec.decode(data, [rows[:1].shape], rate)[0] for data, rate in payloads])


@pytest.fixture
def session(cnn: Bundle, tail: Part) -> Iterator[Any]:
    with open_torch(cnn, tail, EAGER) as opened:
        yield opened


def test_a_batch_of_every_rate_has_the_codecs_own_values(
    link: Link, coded: list[CodedRows], decoded: np.ndarray
) -> None:
    together = CodedRows.join(coded)
    assert isinstance(link.codec, TransformCodec) and len(set(together[RATES].tolist())) > 1
    read = FrameReader(link.codec, torch.device("cpu")).read(together.symbols, together[RATES], together.shape)
    np.testing.assert_array_equal(read.numpy(), decoded)


def test_a_session_answers_symbols_as_it_answers_features(
    session: Any, link: Link, tail: Part, coded: list[CodedRows], decoded: np.ndarray
) -> None:
    assert session.reads(link.digest, link.codec)
    wanted = session.run({tail.inputs[0].name: decoded})
    found = session.run(CodedRows.join(coded))
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_lane_makes_its_rows_where_they_are_computed(
    session: Any, link: Link, coded: list[CodedRows], decoded: np.ndarray
) -> None:
    lane = Lane(session._runner, session.inputs, session.outputs, (1, 2, 4), Processor())
    together, reader = CodedRows.join(coded), FrameReader(link.codec, torch.device("cpu"))  # type: ignore[arg-type]
    rates = together[RATES].tolist()
    with torch.no_grad():
        found = lane.run_made(len(rates), lambda at: reader.read(together.symbols[at], rates[at], together.shape))
        wanted = lane.run([decoded])
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_part_with_other_inputs_or_codecs_reads_none(cnn: Bundle, link: Link) -> None:
    whole = next(part for part in cnn.manifest.parts if part.name == "whole" or part.name.startswith("whole"))
    with open_torch(cnn, whole, EAGER) as opened:
        assert not opened.reads(link.digest, link.codec)
    plain = next((entry for entry in cnn.manifest.codecs if entry.kind == "plain"), None)
    if plain is not None:
        tail = next(part for part in cnn.manifest.parts if part.name.startswith("tail"))
        with open_torch(cnn, tail, EAGER) as opened:
            assert not opened.reads("0" * 64, open_link(cnn, plain.name).codec)


def test_a_batcher_runs_all_rates_as_one_batch(session: Any, link: Link, coded: list[CodedRows]) -> None:
    assert session.reads(link.digest, link.codec)
    sizes: list[int] = []
    batcher = Batcher("m", [[session.run]], True, BatchOptions(max_batch=16), lambda batch: sizes.append(batch.rows))
    answers = batcher.infer(coded)
    batcher.close()
    assert sizes == [len(coded)]
    wanted = session.run(CodedRows.join(coded))
    for row, answer in enumerate(answers):
        for name, rows in wanted.items():
            np.testing.assert_array_equal(answer.outputs[name], rows[row : row + 1])


def test_a_node_in_torch_answers_frames_as_one_in_the_parts_own_runtime(
    cnn: Bundle, tail: Part, link: Link, payloads: list[tuple[bytes, int]], features: Feeds
) -> None:
    [rows] = features.values()
    plan = cnn.manifest.plan_digest(next(v.name for v in cnn.manifest.variants if v.parts[-1] == tail.name))
    frames = [pack(Frame(data, (rows[:1].shape,), rate, plan, link.digest, tail.sha256)) for data, rate in payloads]
    name, answers = model_name(cnn.manifest.name, tail.name), []
    engines: list[dict[str, Any]] = [
        {},
        {"open_session": lambda bundle, part, threads: open_torch(bundle, part, EAGER)},
    ]
    for engine in engines:
        with Node([Path(cnn.path)], NodeOptions(tier="cloud", threads=1, port=None, **engine)) as node:
            assert bool(node.catalog.find(name).read_inside) == bool(engine)
            with NodeClient(node.grpc_url) as client:
                answer = client.infer(frame_call(name, frames, Wish(plan=plan)))
                assert Served.of(answer).rates == (max(rate for _, rate in payloads),)
                answers.append(answer.tensors)
                with pytest.raises(CodecError):
                    damaged = pack(Frame(b"\xff" * 40, (rows[:1].shape,), 0, plan, link.digest, tail.sha256))
                    client.infer(frame_call(name, [damaged], Wish(plan=plan)))
    for key, wanted in answers[0].items():
        # two runtimes sum float32 products in another order
        np.testing.assert_allclose(answers[1][key], wanted, atol=1e-4 * np.abs(wanted).max())


def test_tables_in_a_bundles_bytes_are_read_without_a_warning(link: Link) -> None:
    codec = link.codec
    assert isinstance(codec, TransformCodec)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FrameReader(codec, torch.device("cpu"))
    finally:
        torch.set_warn_always(False)
