"""Ways, links and manifests small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.bundle.manifest import (
    Codec,
    Exit,
    ExitPoint,
    Manifest,
    Part,
    Provenance,
    Rate,
    TensorEntry,
    Tier,
    Variant,
)
from edgekit.devices.segment import Segment
from edgekit.planning.plan import Crossing, RateCost, StageCost, Way

IMAGE = TensorEntry(name="image", dtype="float32", shape=(1, 3, 224, 224))
FEATURE = TensorEntry(name="feature", dtype="float32", shape=(1, 64, 28, 28))
LATE = TensorEntry(name="late", dtype="float32", shape=(1, 128, 7, 7))
LOGITS = TensorEntry(name="logits", dtype="float32", shape=(1, 1000))


def make_part(
    name: str, tier: Tier, gflop: float, before: TensorEntry, after: TensorEntry, *, has_costs: bool = True
) -> Part:
    segments = (Segment(name, "conv", "fp32", gflop * 1e9, 4e6),) if has_costs else ()
    return Part(
        file=f"{name}.onnx",
        size_bytes=100_000,
        sha256="0" * 64,
        name=name,
        format="onnx",
        tier=tier,
        precision="fp32",
        inputs=(before,),
        outputs=(after,),
        segments=segments,
        peak_activation_bytes=50_000,
    )


def make_codec(name: str, feature: TensorEntry, *ladder: tuple[float, float]) -> Codec:
    rates = tuple(Rate(bytes_mean=size, bytes_p95=size, drop=drop, agreement=1 - drop / 100) for size, drop in ladder)
    return Codec(name=name, kind="affine", features=(feature,), rates=rates)


def make_manifest(*, has_costs: bool = True) -> Manifest:
    """Whole on the device; cut once; cut once with an exit that keeps 40 %; cut twice."""
    early = Exit(
        part="exit",
        temperature=1.0,
        threshold=0.9,
        curve=(
            ExitPoint(threshold=0.5, answered=0.8, drop=3.0),
            ExitPoint(threshold=0.9, answered=0.4, drop=0.8),
        ),
    )
    return Manifest(
        name="pictures",
        task="classification",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server", "cloud": "x86-server"},
        parts=(
            make_part("main", "device", 0.8, IMAGE, LOGITS, has_costs=has_costs),
            make_part("head", "device", 0.2, IMAGE, FEATURE),
            make_part("exit", "device", 0.01, FEATURE, LOGITS),
            make_part("tail", "edge", 0.6, FEATURE, LOGITS),
            make_part("middle", "edge", 0.3, FEATURE, LATE),
            make_part("end", "cloud", 0.3, LATE, LOGITS),
        ),
        variants=(
            Variant(name="whole", parts=("main",), drop=0.1),
            Variant(name="split", parts=("head", "tail"), codecs=("early",), drop=0.1),
            Variant(name="cascade", parts=("head", "tail"), codecs=("early",), drop=0.1, exit=early),
            Variant(name="three", parts=("head", "middle", "end"), codecs=("early", "late"), drop=0.1),
        ),
        codecs=(
            make_codec("early", FEATURE, (4000, 0.2), (2000, 0.5), (1000, 2.0)),
            make_codec("late", LATE, (2500, 0.3), (1250, 0.6)),
        ),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="a:b", source_sha256="0" * 64, recipe={}
        ),
    )


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return make_manifest()


@pytest.fixture(scope="session")
def new_manifest() -> Callable[..., Manifest]:
    return make_manifest


@pytest.fixture
def whole() -> Way:
    """30 ms and 300 mJ on the device."""
    return Way("whole", (StageCost("main", "device", 30.0, 300.0, 1000, 20.0),))


@pytest.fixture
def split() -> Way:
    """6 ms on the device, 4 above; 10,000 bytes cost nothing, 1,000 two points, 100 five points."""
    rates = (RateCost(10_000, 0.0, 1.0), RateCost(1_000, 2.0, 0.95), RateCost(100, 5.0, 0.9))
    crossing = Crossing("c", ("device", "edge"), rates, encode_ms=1.0, decode_ms=0.5)
    stages = (StageCost("head", "device", 6.0, 60.0, 400, 3.0), StageCost("tail", "edge", 4.0, 0.0, 900, 2.0))
    return Way("split", stages, (crossing,), answer_bytes=4_000, drop=0.25)


@pytest.fixture
def three() -> Way:
    """Cut twice, two rates at each cut."""
    low = Crossing("low", ("device", "edge"), (RateCost(8_000, 0.0), RateCost(800, 1.0)), 1.0, 0.5)
    high = Crossing("high", ("edge", "cloud"), (RateCost(4_000, 0.0), RateCost(400, 0.5)), 0.4, 0.2)
    stages = (StageCost("a", "device", 3.0, 30.0), StageCost("b", "edge", 2.0), StageCost("c", "cloud", 1.0))
    return Way("three", stages, (low, high), answer_bytes=1_000)
