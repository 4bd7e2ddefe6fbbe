from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result
from PIL import Image

from edgekit.bundle import write_bundle
from edgekit.bundle.manifest import Codec, Manifest, Part, Provenance, Rate, TensorEntry, Tier, Variant
from edgekit.devices.segment import Segment

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

IMAGE = TensorEntry(name="image", dtype="float32", shape=(1, 3, 224, 224))
FEATURE = TensorEntry(name="feature", dtype="float32", shape=(1, 80, 14, 14))
LOGITS = TensorEntry(name="logits", dtype="float32", shape=(1, 1000))


def _part(name: str, tier: Tier, gflop: float, before: TensorEntry, after: TensorEntry) -> Part:
    return Part(
        file=f"{name}.onnx",
        size_bytes=len(name),
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        name=name,
        format="onnx",
        tier=tier,
        precision="fp32",
        inputs=(before,),
        outputs=(after,),
        segments=(Segment(name, "conv", "fp32", gflop * 1e9, 4e6),),
    )


@pytest.fixture(scope="module")
def split_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of 0.8 GFLOP, whole on the device, or cut after its first quarter at twenty rates."""
    ladder = [(4000 * 0.85**index, 0.2 + 0.1 * index) for index in range(20)]
    parts = (
        _part("main", "device", 0.8, IMAGE, LOGITS),
        _part("head", "device", 0.2, IMAGE, FEATURE),
        _part("tail", "edge", 0.6, FEATURE, LOGITS),
    )
    manifest = Manifest(
        name="pictures",
        task="classification",
        device="raspberry-pi-4",
        tiers={"edge": "x86-server"},
        parts=parts,
        variants=(
            Variant(name="whole", parts=("main",), drop=0.1),
            Variant(name="split", parts=("head", "tail"), codecs=("early",), drop=0.1),
        ),
        codecs=(
            Codec(
                name="early",
                kind="affine",
                features=(FEATURE,),
                rates=tuple(Rate(bytes_mean=size, bytes_p95=size, drop=drop, agreement=0.9) for size, drop in ladder),
            ),
        ),
        provenance=Provenance(
            edgekit="0.1.0",
            versions={},
            source_kind="callable",
            source="nowhere_at_all:build",
            source_sha256="0" * 64,
            recipe={"max_drop": 0.65},
        ),
    )
    files = {f"parts/{part.file}": part.name.encode() for part in parts}
    path = tmp_path_factory.mktemp("bundles") / "pictures.edgekit"
    return write_bundle(path, manifest, files, {"schema_version": 1, "bundle": "pictures"}, "<title>pictures</title>")


LINK = ("--link", "20mbps,5ms")


def test_the_chosen_plan_is_marked_and_the_others_have_a_reason(invoke: Invoke, split_bundle: Path) -> None:
    text = invoke("plan", split_bundle, *LINK).stdout
    lines = text.splitlines()
    assert lines[0].split() == ["chosen:", "split", "at", "rate", "4", "of", "0-19"]
    assert any(line.startswith("split at rate 4 of 0-19") and line.endswith("chosen") for line in lines)
    coarsest = next(line for line in lines if line.startswith("split at rate 19 of 0-19"))
    assert "drop 2.1 points, allowed 0.65" in coarsest
    assert any(line.startswith("whole") and line.endswith("ms more") for line in lines)
    assert "bound" in text
    assert "mJ above idle" in text
    assert "mJ of raspberry-pi-4 above idle, estimated" in text


def test_a_link_without_a_round_trip_is_told_what_is_assumed(
    invoke: Invoke, invoke_json: InvokeJson, split_bundle: Path
) -> None:
    result = invoke("plan", split_bundle, "--link", "20mbps", "--cloud-link", "1gbps")
    assert "--link 20mbps gives no round-trip time: 0 ms assumed; write it like 20mbps,20ms" in result.stderr
    assert "--cloud-link 1gbps gives no round-trip time" in result.stderr
    assert "round-trip" not in invoke("plan", split_bundle, *LINK).stderr
    invoke_json("plan", split_bundle, "--link", "20mbps")


def test_json_holds_the_whole_front_with_bounds(invoke_json: InvokeJson, split_bundle: Path) -> None:
    payload = invoke_json("plan", split_bundle, *LINK)
    chosen = payload["chosen"]
    assert (chosen["variant"], chosen["rates"]) == ("split", [4])
    assert 0 < chosen["bound_ms"] < chosen["latency_ms"]
    assert len(payload["front"]) == 21
    assert [row for row in payload["front"] if row["is_chosen"]] == [chosen]
    assert payload["limits"]["drop"] == 0.65
    assert {way["variant"] for way in payload["ways"]} == {"whole", "split"}
    assert "sweep" not in payload


def test_a_long_front_is_thinned_for_people(invoke: Invoke, split_bundle: Path) -> None:
    result = invoke("plan", split_bundle, *LINK)
    table = result.stdout.split("Pareto front")[1].split("Every way")[0].strip().splitlines()
    assert len(table) <= 1 + 17
    assert "more on the front" in result.stderr


def test_options_limit_and_steer_the_choice(invoke_json: InvokeJson, split_bundle: Path) -> None:
    def chosen(*arguments: str) -> tuple[str, list[int]]:
        found = invoke_json("plan", split_bundle, *LINK, *arguments)["chosen"]
        return found["variant"], found["rates"]

    assert chosen("--max-drop", "0.45") == ("split", [2])
    assert chosen("--max-drop", "0.15") == ("whole", [])
    assert chosen("--objective", "bytes") == ("whole", [])
    assert chosen("--max-bytes", "1kB") == ("whole", [])
    assert chosen("--max-drop", "9", "--max-bytes", "1kB") == ("split", [19])
    assert chosen("--device", "x86-server") == ("whole", [])


def test_a_sweep_shows_where_the_plan_switches(invoke: Invoke, invoke_json: InvokeJson, split_bundle: Path) -> None:
    stretches = invoke_json("plan", split_bundle, *LINK, "--sweep")["sweep"]
    assert [stretch["variant"] for stretch in stretches] == ["whole", "split"]
    switch = stretches[0]["high_mbps"]
    for factor, variant in ((0.8, "whole"), (1.25, "split")):
        link = f"{factor * switch:.4f}mbps,5ms"
        assert invoke_json("plan", split_bundle, "--link", link)["chosen"]["variant"] == variant
    assert "Which plan from which bandwidth on" in invoke("plan", split_bundle, *LINK, "--sweep").stdout


def test_a_limit_that_binds_is_named_with_what_is_possible(invoke: Invoke, split_bundle: Path) -> None:
    output = invoke("plan", split_bundle, *LINK, "--max-latency", "2ms", code=14).output
    assert "no plan meets the limit on latency" in output
    assert "allowed 2" in output
    reachable = output.split("--max-latency ")[1].split(",")[0]
    invoke("plan", split_bundle, *LINK, "--max-latency", reachable)


@pytest.mark.parametrize("suffix", [".svg", ".html", ".png"])
def test_the_front_is_drawn_in_the_format_of_the_suffix(
    invoke: Invoke, split_bundle: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"front{suffix}"
    invoke("plan", split_bundle, *LINK, "--plot", file)
    if suffix == ".png":
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 20)) > 8
    else:
        text = file.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
        circles = [element for element in root.iter() if element.tag.endswith("circle")]
        # 21 plans, the ring of the chosen one, two entries of the key.
        assert len(circles) == 21 + 1 + 2
    invoke("plan", split_bundle, *LINK, "--plot", file, code=10)
    invoke("plan", split_bundle, *LINK, "--plot", file, "--force")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    ((), 2, "--link"),
    (("--link", "fast"), 2, "not a quantity"),
    ((*LINK, "--cloud-link", "10ms"), 2, "no bandwidth"),
    ((*LINK, "--edge", "x86-servr"), 2, "did you mean 'x86-server'"),
    ((*LINK, "--max-latency", "soon"), 2, "is no time"),
    ((*LINK, "--max-bytes", "0"), 2, "is no size"),
    ((*LINK, "--max-drop", "-1"), 2, "--max-drop"),
    ((*LINK, "--objective", "beauty"), 2, "beauty"),
    ((*LINK, "--plot", "front.gif"), 2, "unknown suffix"),
    ((*LINK, "--plot", "/nowhere/at/all/front.svg"), 10, "there is no folder"),
])  # fmt: skip
def test_what_cannot_be_planned_is_refused(
    invoke: Invoke, split_bundle: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    assert words in invoke("plan", split_bundle, *arguments, code=code).output


def test_a_bundle_without_costs_says_so(invoke: Invoke, bundle: Path) -> None:
    assert "states no costs" in invoke("plan", bundle, *LINK, code=14).output
