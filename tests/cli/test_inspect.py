from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.bundle import Bundle, describe_file
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Codec, Rate, TensorEntry, TextPreprocess
from edgekit.cli.inspect import _show
from edgekit.cli.output import Output

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def test_it_shows_parts_shapes_scales_history_and_provenance(invoke: Invoke, bundle: Path) -> None:
    text = invoke("inspect", bundle).stdout
    for wanted in (
        "brightest (classification)",
        "main.onnx",
        "[1, 3, 8, 8]",
        "alone limits the output to 18.5 dB",
        "Scales (12)",
        "7 operators",
        "nowhere_at_all:build (callable)",
        "device=raspberry-pi-5, seed=0",
        "shorter side to 8 (bicubic), crop 8, (x - 127.5) / 127.5, NCHW",
    ):
        assert wanted in text


def test_variants_state_what_they_lose_and_how_long_they_take(
    invoke: Invoke, bundle: Path, bundle_with_float: Path
) -> None:
    assert "Variants on the device" not in invoke("inspect", bundle).stdout
    text = invoke("inspect", bundle_with_float).stdout
    lines = text[text.index("Variants on the device") :].splitlines()
    assert "points lost" in lines[1] and "device ms" in lines[1]
    assert [line.split()[:3] for line in lines[2:4]] == [["main", "main", "-"], ["float", "float", "0.00"]]


def test_plain_output_has_no_escape_and_no_frame(invoke: Invoke, bundle: Path) -> None:
    text = invoke("inspect", bundle).stdout
    assert "\x1b" not in text
    assert not set("─│┌━") & set(text)


def test_scales_are_cut_unless_all_are_asked_for(invoke: Invoke, bundle: Path) -> None:
    short = invoke("inspect", bundle)
    assert "layer_11" not in short.stdout
    assert "4 more scales" in short.stderr
    assert "layer_11" in invoke("inspect", bundle, "--scales").stdout
    assert invoke("inspect", bundle, "-q").stderr == ""


def test_json_holds_the_whole_manifest(invoke_json: InvokeJson, bundle: Path) -> None:
    payload = invoke_json("inspect", bundle)
    assert payload["manifest"]["parts"][0]["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    assert len(payload["manifest"]["grids"]) == 12
    assert payload["report"]["device"] == "raspberry-pi-5"
    assert payload["signed_by"] is None
    assert len(payload["digest"]) == 64


def test_the_report_is_written_once_and_replaced_only_with_force(invoke: Invoke, bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    invoke("inspect", bundle, "--report", page)
    assert page.read_text().startswith("<!doctype html>")
    assert "--force" in invoke("inspect", bundle, "--report", page, code=10).stderr
    invoke("inspect", bundle, "--report", page, "--force")


def test_a_report_that_cannot_be_written_is_an_output_error(invoke: Invoke, bundle: Path, tmp_path: Path) -> None:
    invoke("inspect", bundle, "--report", tmp_path / "missing" / "report.html", code=10)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", None])
def test_what_is_no_bundle_ends_with_9(invoke: Invoke, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.edgekit"
    if content is not None:
        path.write_bytes(content)
    invoke("inspect", path, code=9)


def test_tiers_stand_in_the_order_of_a_request_and_assets_say_what_they_are_for(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feature = TensorEntry(name="x", dtype="float32", shape=("batch", 4))
    rates = (Rate(bytes_mean=9, bytes_p95=9, drop=0.0),)
    files = ("codec-x.bin", "golden-x.npz", "words.json", "notes.txt")
    codec = Codec(name="feature-x", kind="transform", features=(feature,), tables="codec-x.bin", rates=rates)
    with Bundle.open(bundle) as opened:
        changed = opened.manifest.model_copy(
            update={
                "tiers": {"cloud": "x86-server", "edge": "jetson-orin-nano"},
                "assets": tuple(describe_file(name, b"") for name in files),
                "codecs": (codec,),
                "golden": (Golden(part="model", file="golden-x.npz", samples=1, least_sqnr_db=20.0),),
                "preprocess": TextPreprocess(tokenizer="words.json", max_length=8),
            }
        )
        opened.manifest = changed
        _show(Output(), opened, scales=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[2:5]] == ["device", "edge", "cloud"]
    roles = {name: next(line for line in lines if f" {name} " in line).split("  ")[0] for name in files}
    assert list(roles.values()) == ["tables of feature-x", "golden answers of model", "tokenizer", "asset"]
    assert any("torch MB" in line for line in lines)
