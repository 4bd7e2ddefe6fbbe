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
from edgekit.bundle.manifest import HistoryLine, Manifest, Part, Provenance, TensorEntry, Variant
from edgekit.cli.compare import Compared
from edgekit.cli.compare_plot import comparison_shapes
from edgekit.cli.drawing import Dot
from edgekit.report.model import EvaluationReport, Latency, Predicted, Quality, SplitRow

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

X = TensorEntry(name="x", dtype="float32", shape=(1, 8))
Y = TensorEntry(name="y", dtype="float32", shape=(1, 4))


def bundle(
    folder: Path, name: str, *, cosine: float, host: float, device: float, weight: int, isa: str = "avx2", **other: Any
) -> Path:
    content = name.encode() * weight
    (folder / f"{name}.onnx").write_bytes(content)
    part = Part(
        file=f"{name}.onnx",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        name="model",
        format="onnx",
        precision=name,
        inputs=(X,),
        outputs=(Y,),
    )
    manifest = Manifest(
        name=other.get("model", "net"),
        task="other",
        device="raspberry-pi-4",
        parts=(part,),
        variants=(Variant(name="whole", parts=("model",)),),
        history=(HistoryLine(name="PruneTokens", detail="merge", size_bytes=1),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="sample", source="net", source_sha256="0" * 64,
            recipe={"max_drop": 1.0},
        ),
    )  # fmt: skip
    report = EvaluationReport(
        bundle=name,
        device="raspberry-pi-4",
        quality=Quality(measure="cosine", value=cosine, samples=10, reference="float model", sqnr_db=30.0),
        latency_ms=Latency(
            host=host, isa=isa, predicted=(Predicted(device="raspberry-pi-4", p50=device, low=1, high=99),)
        ),
        split=tuple(
            SplitRow(variant="split", codec="c", rate=rate, bytes_mean=size, bytes_p95=size, drop=drop)
            for rate, (size, drop) in enumerate(other.get("rates", ()))
        ),
    )
    path = folder / f"{name}.edgekit"
    return write_bundle(
        path, manifest, {f"parts/{name}.onnx": folder / f"{name}.onnx"}, report.to_json(), "<!doctype html>"
    )


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """`slow` is larger and slower than int8 and no better."""
    rates = [(3000.0, 0.2), (900.0, 0.9), (300.0, 4.0)]
    return [
        str(bundle(tmp_path, "fp32", cosine=1.0, host=10.0, device=60.0, weight=400)),
        str(bundle(tmp_path, "int8", cosine=0.995, host=4.0, device=30.0, weight=100, rates=rates)),
        str(bundle(tmp_path, "slow", cosine=0.99, host=5.0, device=31.0, weight=200)),
    ]


def test_the_figures_of_the_reports_stand_side_by_side(invoke_json: InvokeJson, three: list[str]) -> None:
    rows = {row["bundle"]: row for row in invoke_json("compare", *three)["bundles"]}
    int8 = rows["int8.edgekit"]
    assert (int8["artifact"], int8["host_ms"], int8["device_ms"], int8["size_bytes"]) == ("onnx int8", 4.0, 30.0, 400)
    assert int8["lost"] == pytest.approx(0.5)
    assert int8["sends_bytes"] == 900.0
    assert int8["made_by"] == ["PruneTokens"]
    assert rows["fp32.edgekit"]["sends_bytes"] is None


def test_a_bundle_that_another_beats_is_marked(invoke: Invoke, invoke_json: InvokeJson, three: list[str]) -> None:
    rows = {row["bundle"]: row["beaten_by"] for row in invoke_json("compare", *three)["bundles"]}
    assert rows == {"fp32.edgekit": None, "int8.edgekit": None, "slow.edgekit": "int8.edgekit"}
    result = invoke("compare", *three)
    assert "beaten by int8.edgekit" in result.output
    assert "no better in points lost, size, or latency" in result.stderr
    assert "board mJ" in result.stdout


def test_unlike_machines_and_models_are_told(invoke: Invoke, tmp_path: Path) -> None:
    one = bundle(tmp_path, "a", cosine=1.0, host=1.0, device=1.0, weight=1)
    other = bundle(tmp_path, "b", cosine=1.0, host=1.0, device=1.0, weight=1, isa="neon", model="other")
    text = invoke("compare", str(one), str(other)).output
    assert "different models: net, other" in text and "avx2 x 1, neon x 1" in text


@pytest.mark.parametrize("suffix", [".svg", ".html", ".png"])
def test_they_are_drawn(invoke: Invoke, three: list[str], tmp_path: Path, suffix: str) -> None:
    plot = tmp_path / f"plot{suffix}"
    invoke("compare", *three, "--plot", plot)
    if suffix == ".png":
        with Image.open(plot) as image:
            assert image.size[0] > 1000
    elif suffix == ".svg":
        circles = [node for node in ElementTree.parse(plot).iter() if node.tag.endswith("circle")]
        assert len(circles) == 6
    assert "--force replaces it" in invoke("compare", *three, "--plot", plot, code=10).stderr
    invoke("compare", *three, "--plot", plot, "--force")


def test_one_bundle_and_missing_ones_are_refused(invoke: Invoke, three: list[str]) -> None:
    assert "two or more" in invoke("compare", three[0], code=2).stderr
    assert "nowhere.edgekit" in invoke("compare", three[0], "nowhere.edgekit", code=9).stderr
    assert "unknown suffix" in invoke("compare", *three[:2], "--plot", "plot.gif", code=2).stderr


def test_dots_on_each_other_are_all_seen() -> None:
    rows = [
        Compared(f"{name}.edgekit", "net", "here", "onnx", "avx2", 1, 0.5, None, size, 1.0, None, None, None, ())
        for name, size in (("a", 1000), ("b", 1000), ("c", 900))
    ]
    dots = [shape for shape in comparison_shapes(rows, "net") if isinstance(shape, Dot) and "points" in shape.words]
    assert [dot.words.partition(".")[0] for dot in dots] == ["a", "b", "c"]
    assert dots[0].radius > 1.4 * dots[1].radius > 1.9 * dots[2].radius
