from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result

from edgekit.bundle import write_bundle
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
from edgekit.cli.simulate import milliseconds
from edgekit.devices.segment import Segment
from edgekit.errors import UsageError
from edgekit.planning.comparison import POLICIES
from edgekit.planning.named_traces import TRACES

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

IMAGE = TensorEntry(name="image", dtype="float32", shape=(1, 3, 224, 224))
FEATURE = TensorEntry(name="feature", dtype="float32", shape=(1, 80, 14, 14))
LATE = TensorEntry(name="late", dtype="float32", shape=(1, 192, 7, 7))
LOGITS = TensorEntry(name="logits", dtype="float32", shape=(1, 1000))


def _part(name: str, tier: Tier, gflop: float, before: TensorEntry, after: TensorEntry) -> Part:
    data = name.encode()
    segment = Segment(name, "conv", "fp32", gflop * 1e9, 4e6)
    return Part(
        file=f"{name}.onnx",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        name=name,
        format="onnx",
        tier=tier,
        precision="fp32",
        inputs=(before,),
        outputs=(after,),
        segments=(segment,),
    )


def _codec(name: str, kind: str, feature: TensorEntry, *ladder: tuple[float, float]) -> Codec:
    rates = tuple(Rate(bytes_mean=size, bytes_p95=size, drop=drop, agreement=1 - drop / 100) for size, drop in ladder)
    return Codec(name=name, kind=kind, features=(feature,), rates=rates)


@pytest.fixture(scope="module")
def split_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of 0.8 GFLOP whole, cut after its first quarter, cut twice, with an exit, and offered as a whole above."""
    parts = (
        _part("main", "device", 0.8, IMAGE, LOGITS),
        _part("head", "device", 0.2, IMAGE, FEATURE),
        _part("exit", "device", 0.01, FEATURE, LOGITS),
        _part("tail", "edge", 0.6, FEATURE, LOGITS),
        _part("middle", "edge", 0.3, FEATURE, LATE),
        _part("end", "cloud", 0.3, LATE, LOGITS),
        _part("above", "edge", 0.8, IMAGE, LOGITS),
    )
    early = Exit(part="exit", temperature=1.0, threshold=0.9, curve=(ExitPoint(threshold=0.9, answered=0.4, drop=0.8),))
    manifest = Manifest(
        name="pictures",
        task="classification",
        device="raspberry-pi-4",
        tiers={"edge": "x86-server", "cloud": "x86-server"},
        parts=parts,
        variants=(
            Variant(name="whole", parts=("main",), drop=0.1),
            Variant(name="split", parts=("head", "tail"), codecs=("early",), drop=0.1),
            Variant(name="cascade", parts=("head", "tail"), codecs=("early",), drop=0.1, exit=early),
            Variant(name="three", parts=("head", "middle", "end"), codecs=("early", "late"), drop=0.1),
            Variant(name="picture", parts=("above",), codecs=("image",)),
        ),
        codecs=(
            _codec("early", "affine", FEATURE, (4200, 0.2), (2500, 0.5), (1900, 0.9), (1100, 2.5)),
            _codec("late", "affine", LATE, (2500, 0.2), (1400, 0.5)),
            _codec("image", "image", IMAGE, (60000, 0.0), (21000, 17.0), (9000, 40.0)),
        ),
        provenance=Provenance(
            edgekit="0.1.0",
            versions={},
            source_kind="callable",
            source="nowhere_at_all:build",
            source_sha256="0" * 64,
            recipe={},
        ),
    )
    files = {f"parts/{part.file}": part.name.encode() for part in parts}
    path = tmp_path_factory.mktemp("bundles") / "pictures.edgekit"
    return write_bundle(path, manifest, files, {"schema_version": 1, "bundle": "pictures"}, "<title>pictures</title>")


def test_every_policy_stands_in_the_table_of_every_trace(invoke_json: InvokeJson, split_bundle: Path) -> None:
    payload = invoke_json("simulate", split_bundle, "--trace", "all", "--requests", "60")
    assert set(payload["traces"]) == set(TRACES)
    assert payload["missing"] == {}
    for found in payload["traces"].values():
        assert list(found["policies"]) == list(POLICIES)
        assert found["best_single"] in POLICIES
        assert found["policies"]["oracle"]["regret"] == 0
        assert found["policies"]["offload-jpeg"]["within_max_drop"] is False
        assert found["policies"]["local"]["bytes"] == 0
        assert found["policies"]["neurosurgeon"]["drop"] <= 0.1 + 1e-9
    assert payload["traces"]["steady-1"]["policies"]["split"]["plan"].startswith("split@")


def test_a_file_and_a_name_may_be_mixed(invoke: Invoke, split_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("time_s,bandwidth_mbps,rtt_ms\n0,50,5\n")
    arguments = ("--trace", tmp_path / "mine.csv", "--trace", "steady-1", "--policy", "local", "--policy", "edgekit")
    lines = invoke("simulate", split_bundle, *arguments, "--requests", "20").stdout.splitlines()
    heads = [line.split()[0] for line in lines if line]
    assert heads == ["mine", "local", "edgekit", "steady-1", "local", "edgekit"]


def test_an_upper_link_without_a_round_trip_is_told_what_is_assumed(invoke: Invoke, split_bundle: Path) -> None:
    arguments = ("simulate", split_bundle, "--trace", "lte", "--requests", "3", "--edge-link", "1gbps")
    assert "--edge-link 1gbps gives no round-trip time" in invoke(*arguments).stderr


def test_the_same_seed_gives_the_same_figures(invoke: Invoke, split_bundle: Path) -> None:
    arguments = ("simulate", split_bundle, "--trace", "lte", "--requests", "40", "--json")
    assert invoke(*arguments).stdout == invoke(*arguments).stdout
    assert invoke(*arguments).stdout != invoke(*arguments, "--seed", "1").stdout


def test_a_bundle_of_one_part_says_which_policies_it_lacks(invoke_json: InvokeJson, split_bundle: Path,
                                                           whole_bundle: Path) -> None:  # fmt: skip
    payload = invoke_json("simulate", whole_bundle, "--trace", "lte", "--requests", "5")
    assert set(payload["traces"]["lte"]["policies"]) == {"local", "edgekit", "oracle"}
    assert set(payload["missing"]) == set(POLICIES) - {"local", "edgekit", "oracle"}


def test_policies_that_the_bundle_has_no_way_for_are_refused(invoke: Invoke, whole_bundle: Path) -> None:
    asked = ("simulate", whole_bundle, "--trace", "lte", "--requests", "5", "--policy", "cascade", "--policy", "split")
    result = invoke(*asked, code=14)
    assert result.stdout == ""
    assert "no cascade, split" in result.stderr
    assert "possible here: local, edgekit, oracle" in result.stderr
    assert "no cascade" in invoke(*asked, "--policy", "local").stderr


@pytest.fixture(scope="module")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    part = _part("main", "device", 0.8, IMAGE, LOGITS)
    manifest = Manifest(
        name="alone",
        task="classification",
        device="raspberry-pi-4",
        parts=(part,),
        variants=(Variant(name="whole", parts=("main",)),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="a:b", source_sha256="0" * 64, recipe={}
        ),
    )
    path = tmp_path_factory.mktemp("bundles") / "alone.edgekit"
    return write_bundle(path, manifest, {"parts/main.onnx": b"main"}, {"schema_version": 1}, "<title>alone</title>")


def test_the_plot_is_an_svg_file_with_a_bar_for_each_policy(invoke: Invoke, split_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "policies.svg"
    invoke("simulate", split_bundle, "--trace", "lte", "--requests", "10", "--plot", file)
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    assert len([element for element in root.iter() if element.tag.endswith("rect")]) == len(POLICIES)
    invoke("simulate", split_bundle, "--trace", "lte", "--requests", "10", "--plot", file, code=10)
    invoke("simulate", split_bundle, "--trace", "lte", "--requests", "10", "--plot", file, "--force")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (("--trace", "lt"), 2, "did you mean 'lte'"),
    (("--trace", "none.csv"), 4, "cannot read the trace"),
    (("--trace", "lte", "--policy", "spilt"), 2, "did you mean 'split'"),
    (("--trace", "lte", "--deadline", "soon"), 2, "is no time"),
    (("--trace", "lte", "--deadline", "0ms"), 2, "deadline above 0"),
    (("--trace", "lte", "--rate", "2", "--think", "10ms"), 2, "exclude each other"),
    (("--trace", "lte", "--edge-link", "fast"), 2, "not a quantity"),
    (("--trace", "lte", "--edge", "x86-servr"), 2, "did you mean 'x86-server'"),
    (("--trace", "lte", "--max-drop", "-1"), 2, "--max-drop"),
    ((), 2, "--trace"),
])  # fmt: skip
def test_what_cannot_be_simulated_is_refused(
    invoke: Invoke, split_bundle: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    assert words in invoke("simulate", split_bundle, *arguments, code=code).output


def test_the_drop_limit_decides_which_plans_count(invoke_json: InvokeJson, split_bundle: Path) -> None:
    found = invoke_json("simulate", split_bundle, "--trace", "lte", "--max-drop", "0", "--requests", "5")
    rows = found["traces"]["lte"]["policies"]
    assert "split" in found["missing"]
    assert rows["offload"]["plan"] == "picture@0"
    assert rows["local"]["within_max_drop"] is False


def test_a_bundle_that_is_none_is_a_bundle_error(invoke: Invoke, tmp_path: Path) -> None:
    assert "none.edgekit" in invoke("simulate", tmp_path / "none.edgekit", "--trace", "lte", code=9).output


@pytest.mark.parametrize(("text", "value"), [("300ms", 300), ("0.3s", 300), ("300", 300), ("2 s", 2000)])
def test_a_time_has_a_unit_or_is_in_milliseconds(text: str, value: float) -> None:
    assert milliseconds(text, "--deadline") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "ms", "-1ms", "nan", "inf", "3m"])
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--deadline"):
        milliseconds(text, "--deadline")
