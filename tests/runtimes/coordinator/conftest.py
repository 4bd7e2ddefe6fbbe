"""A small bundle with every kind of variant, peers that run its parts in this process, a clock that a test turns."""

from __future__ import annotations

import heapq
import itertools
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.bundle.manifest import (
    Codec,
    Exit,
    ExitPoint,
    Manifest,
    Part,
    Postprocess,
    Provenance,
    Rate,
    TensorEntry,
    Tier,
    Variant,
)
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.codecs.frame import check, unpack
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.load import load
from edgekit.runtimes.peer import NodeInfo, Reply, Request

WIDTH, CLASSES = 6, 3
GAIN = np.random.default_rng(3).standard_normal((WIDTH, CLASSES)).astype(np.float32) * 2
ROUGH = (GAIN + np.random.default_rng(4).standard_normal((WIDTH, CLASSES)).astype(np.float32)).astype(np.float32)


def truth(x: np.ndarray, scale: float = 2.0) -> np.ndarray:
    """What the whole model says of float32 [n, WIDTH]."""
    answer: np.ndarray = ((x * np.float32(scale) + 1) @ GAIN).astype(np.float32)
    return answer


def tensor(name: str, values: np.ndarray) -> Any:
    return helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.ravel().tolist())


def onnx_of(steps: list[tuple[str, np.ndarray]], input: str, output: str, batch: str | int) -> bytes:
    """float32 [batch, WIDTH] through `steps` (operator, weight)."""
    nodes, weights, last = [], [], input
    for number, (operator, weight) in enumerate(steps):
        result = output if number + 1 == len(steps) else f"{output}_{number}"
        nodes.append(helper.make_node(operator, [last, f"w{number}"], [result]))
        weights.append(tensor(f"w{number}", weight))
        last = result
    width = next((weight.shape[1] for _, weight in steps if weight.ndim == 2), WIDTH)
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(input, TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def make_bundle(
    path: Path,
    *,
    scale: float = 2.0,
    batch: str | int = 1,
    local: bool = True,
    threshold: float = 0.99,
    coded: bool = False,
) -> Path:
    """Variants, all with the output `logits`: `local` on the device; `split` (head, edge), `deep` (head, cloud),
    `three` (head, edge, cloud), `offload` (all on the edge), `early` (head with an exit, edge), `late` (... cloud).

    `coded`: the head's features go through a transform codec of four rates, each step three times the one before.
    """
    scaling = ("Mul", np.full(WIDTH, scale, np.float32))
    adding, finish = ("Add", np.ones(WIDTH, np.float32)), ("MatMul", GAIN)
    made: dict[str, tuple[Tier, list[tuple[str, np.ndarray]], str, str]] = {
        "whole": ("device", [scaling, adding, finish], "x", "logits"),
        "head": ("device", [scaling], "x", "scaled"),
        "exit": ("device", [("MatMul", ROUGH)], "scaled", "logits"),
        "middle": ("edge", [adding], "scaled", "shifted"),
        "rest": ("edge", [adding, finish], "scaled", "logits"),
        "all": ("edge", [scaling, adding, finish], "x", "logits"),
        "tail": ("cloud", [finish], "shifted", "logits"),
        "rest-above": ("cloud", [adding, finish], "scaled", "logits"),
    }
    files = {name: onnx_of(steps, first, last, batch) for name, (_, steps, first, last) in made.items()}

    def entry(name: str, width: int = WIDTH) -> TensorEntry:
        return TensorEntry(name=name, dtype="float32", shape=(batch, width))

    parts = tuple(
        Part(
            **describe_file(f"{name}.onnx", files[name]).model_dump(),
            name=name,
            tier=tier,
            format="onnx",
            precision="fp32",
            inputs=(entry(first),),
            outputs=(entry(last, CLASSES if last == "logits" else WIDTH),),
        )
        for name, (tier, _, first, last) in made.items()
    )
    ladder = tuple(Rate(bytes_mean=size, bytes_p95=size, drop=drop) for size, drop in ((64, 0.0), (48, 0.1)))

    assets: dict[str, bytes] = {}
    if coded:
        noise = np.random.default_rng(6).laplace(0, 1, (4000, WIDTH)).astype(np.float32)
        assets["steps.tables"] = fit_transform_tables(noise, [0.004, 0.012, 0.036, 0.108])

    def codec(feature: str) -> Codec:
        if coded and feature == "scaled":
            return Codec(
                name="coded-scaled",
                kind="transform",
                features=(entry(feature),),
                tables="steps.tables",
                rates=tuple(Rate(bytes_mean=size, bytes_p95=size, drop=0.0) for size in (48, 46, 44, 42)),
            )
        return Codec(name=f"plain-{feature}", kind="plain", features=(entry(feature),), rates=ladder)

    leaves = Exit(
        part="exit",
        temperature=1.0,
        threshold=threshold,
        curve=(ExitPoint(threshold=threshold, answered=0.3, drop=0.1),),
    )
    scaled = codec("scaled").name
    variants = (
        *((Variant(name="local", parts=("whole",)),) if local else ()),
        Variant(name="split", parts=("head", "rest"), codecs=(scaled,)),
        Variant(name="deep", parts=("head", "rest-above"), codecs=(scaled,)),
        Variant(name="three", parts=("head", "middle", "tail"), codecs=(scaled, "plain-shifted")),
        Variant(name="offload", parts=("all",), codecs=("plain-x",)),
        Variant(name="early", parts=("head", "rest"), codecs=(scaled,), exit=leaves),
        Variant(name="late", parts=("head", "rest-above"), codecs=(scaled,), exit=leaves),
    )
    manifest = Manifest(
        name="net",
        task="classification",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server", "cloud": "x86-server"},
        parts=parts,
        codecs=(codec("x"), codec("scaled"), codec("shifted")),
        variants=variants,
        assets=tuple(describe_file(name, content) for name, content in assets.items()),
        postprocess=Postprocess(kind="classification", output="logits"),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="net", source_sha256="0" * 64, recipe={}
        ),
    )
    contents = {f"parts/{name}.onnx": data for name, data in files.items()}
    contents |= {f"assets/{name}": content for name, content in assets.items()}
    return write_bundle(path, manifest, contents, {"schema_version": 1}, "<!doctype html>")


class FakeClock:
    """Seconds that pass only while somebody waits; what is scheduled happens on the way."""

    def __init__(self) -> None:
        self.time = 100.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.time + delay_s, next(self._order), action))

    def advance(self, seconds: float) -> None:
        self.run_until(self.time + seconds)

    def run_until(self, moment: float) -> None:
        while self._due and self._due[0][0] <= moment:
            self.step()
        self.time = max(self.time, moment)

    def step(self) -> None:
        at, _, action = heapq.heappop(self._due)
        self.time = max(self.time, at)
        action()

    def mailbox(self) -> FakeMailbox:
        return FakeMailbox(self)


class FakeMailbox:
    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._events: list[Any] = []

    def put(self, event: Any) -> None:
        self._events.append(event)

    def get(self, until: float) -> Any | None:
        while not self._events:
            due = self._clock._due
            if not due or due[0][0] > until:
                assert until < float("inf"), "would wait for ever"
                self._clock.time = max(self._clock.time, until)
                return None
            self._clock.step()
        return self._events.pop(0)


class FakePool:
    """Runs at once what is submitted, and has it finished `takes_s` of the clock later."""

    def __init__(self, clock: FakeClock, takes_s: float = 0.001) -> None:
        self._clock, self.takes_s = clock, takes_s
        self.is_down = False

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        if self.is_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()

        def finish() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

        self._clock.after(self.takes_s, finish)
        return future

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        self.is_down = True


@dataclass
class FakePeer:
    """A node in this process, which really decodes and runs the parts above. `behaviour`, where given, decides for each
    request: a delay in seconds, an error to raise after `delay_s`, or None for silence."""

    bundle: Bundle
    clock: FakeClock
    tier: Tier = "edge"
    delay_s: float = 0.01
    behaviour: Callable[[Request], float | Exception | None] | None = None
    handshake_error: Exception | None = None
    info: NodeInfo | None = None
    url: str = "fake://node"
    asked: list[Request] = field(default_factory=list)
    handshakes: int = 0
    pings: list[int] = field(default_factory=list)
    twist: Callable[[Reply], Reply] = lambda reply: reply
    _sessions: dict[str, Any] = field(default_factory=dict)

    def handshake(self, deadline_s: float) -> Future[NodeInfo]:
        self.handshakes += 1
        manifest = self.bundle.manifest
        names = [variant.name for variant in manifest.variants if variant.codecs]
        info = self.info or NodeInfo(
            self.url,
            self.bundle.digest,
            {name: manifest.plan_digest(name) for name in names},
            {codec.name: manifest.codec_digest(codec.name) for codec in manifest.codecs},
        )
        return self._later(0.002, info if self.handshake_error is None else self.handshake_error)

    def ping(self, deadline_s: float, padding_bytes: int = 0) -> Future[None]:
        self.pings.append(padding_bytes)
        return self._later(0.002, None)

    def ask(self, request: Request, deadline_s: float) -> Future[Reply]:
        self.asked.append(request)
        outcome = self.behaviour(request) if self.behaviour is not None else self.delay_s
        if outcome is None:
            return Future()
        if isinstance(outcome, Exception):
            return self._later(self.delay_s, outcome)
        return self._later(outcome, self.twist(self._answer(request)))

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()

    def _answer(self, request: Request) -> Reply:
        manifest = self.bundle.manifest
        variant = manifest.variant(request.variant)
        frame = unpack(request.frames[0])
        check(
            frame,
            manifest.plan_digest(variant.name),
            manifest.codec_digest(variant.codecs[0]),
            manifest.part(request.part).sha256,
        )
        codec = open_codec(manifest.codec(variant.codecs[0]), None)
        arrays: list[np.ndarray] = codec.decode(frame.payload, frame.shapes, frame.rate)
        for name in variant.parts[variant.parts.index(request.part) :]:
            if name not in self._sessions:
                self._sessions[name] = load(self.bundle, part=name, threads=1)
            session = self._sessions[name]
            given = {spec.name: array for spec, array in zip(session.inputs, arrays, strict=True)}
            outputs = session.run(given)
            arrays = list(outputs.values())
        tier = manifest.part(variant.parts[-1]).tier
        return Reply(outputs, request.id, tier, compute_ms=1.0, size_bytes=100, sent_bytes=request.size_bytes + 100)

    def _later(self, delay_s: float, outcome: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def finish() -> None:
            if future.set_running_or_notify_cancel():
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

        self.clock.after(delay_s, finish)
        return future


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("coordinated") / "net.edgekit")


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(bundle_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def without_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle.open(make_bundle(tmp_path_factory.mktemp("bare") / "net.edgekit", local=False)) as opened:
        yield opened


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Of the same name, with other weights."""
    with Bundle.open(make_bundle(tmp_path_factory.mktemp("another") / "net.edgekit", scale=3.0)) as opened:
        yield opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).random((1, WIDTH), np.float32)}


@pytest.fixture
def unsure() -> dict[str, np.ndarray]:
    """Exit and whole model find all classes alike: scaled @ ROUGH = 0 and (scaled + 1) @ GAIN = 0."""
    wanted = np.concatenate([np.zeros(CLASSES), -GAIN.sum(0)])
    scaled = np.linalg.solve(np.concatenate([ROUGH, GAIN], 1).T.astype(np.float64), wanted)
    return {"x": (scaled / 2).astype(np.float32)[None]}


@pytest.fixture
def peer(bundle: Bundle, clock: FakeClock) -> Iterator[FakePeer]:
    made = FakePeer(bundle, clock)
    yield made
    made.close()


@pytest.fixture
def coordinate(bundle: Bundle, clock: FakeClock) -> Iterator[Callable[..., Coordinator]]:
    """A coordinator on the fake clock, hands already shaken."""
    made: list[Coordinator] = []

    def start(edge: Any = None, cloud: Any = None, *, of: Bundle | None = None, **settings: Any) -> Coordinator:
        pool = FakePool(clock, settings.pop("takes_s", 0.001))
        coordinator = Coordinator(of or bundle, edge, cloud, clock=clock, pool=pool, threads=1, **settings)
        made.append(coordinator)
        clock.advance(0.01)
        return coordinator

    yield start
    for coordinator in made:
        coordinator.close()


@pytest.fixture
def free_port() -> int:
    """Nothing listens there, for as long as nobody else is given it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session", name="truth")
def _truth() -> Callable[..., np.ndarray]:
    return truth


@pytest.fixture(scope="session", name="make_bundle")
def _make_bundle() -> Callable[..., Path]:
    return make_bundle


@pytest.fixture(scope="session")
def fake_peer() -> type[FakePeer]:
    return FakePeer
