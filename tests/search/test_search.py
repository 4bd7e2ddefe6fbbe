"""The whole search on a real transformer: from options to a bundle, refused, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.devices.device import load_device
from edgekit.errors import PlanError, UsageError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.pipeline import ExportResult, export_recipe
from edgekit.progress import silent
from edgekit.recipe import Recipe
from edgekit.report.model import EvaluationReport
from edgekit.runtimes.load import load
from edgekit.search.run import search, state_path
from edgekit.zoo.fashion import FashionVit, fashion_vit

RECIPE = Recipe(
    source="fashion-vit", device="raspberry-pi-5", format="onnx", quantize="int8-dynamic", learned_rounding=False,
    max_drop=3.0, report=False,
)  # fmt: skip


def small() -> Model:
    """Two blocks of the trained one, and few samples: seconds."""
    model = fashion_vit()
    module = model.module
    assert isinstance(module, FashionVit)
    module.blocks = module.blocks[:2]
    return model.evolve_quietly(calibration=model.calibration[:16], held_out=model.held_out[:32], labels=())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    output = tmp_path_factory.mktemp("search") / "vit.edgekit"
    recipe = replace(RECIPE, budget="30s", limit="size=200kB", max_drop=10.0, output=str(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.pipeline.resolve", lambda *_, **__: small())
        return export_recipe(recipe)


def test_the_bundle_holds_what_was_chosen_within_the_limits(result: ExportResult) -> None:
    assert result.search is not None
    chosen = result.search.chosen
    assert chosen.size_bytes <= 2e5
    assert chosen.drop <= 10.0
    (part,) = result.bundle.manifest.parts
    assert part.size_bytes == chosen.size_bytes
    assert part.precision == chosen.configuration.family.precision
    report = EvaluationReport.from_json(result.bundle.report)
    assert report.latency_ms is not None
    assert report.latency_ms.predicted[0].p50 == pytest.approx(chosen.latency_ms)
    named = {change.name for change in report.changes}
    assert ("NarrowBlocks" in named) == (chosen.configuration.shape is not None)
    assert ("PruneTokens" in named) == (chosen.configuration.keep is not None)
    assert (report.parity[0].step == "pruned") == chosen.configuration.prunes
    with load(result.bundle.path) as session:
        assert session is not None


def test_the_front_is_verified_and_tells_what_was_expected(result: ExportResult) -> None:
    assert result.search is not None
    assert all(not one.failed and one in result.search.verified for one in result.search.front)
    assert result.search.chosen in result.search.verified
    summary = result.to_json()["search"]
    assert {row["recipe"] for row in summary["front"]} == {str(one.configuration) for one in result.search.front}
    assert summary["chosen"]["expected"].keys() >= {"drop", "latency_ms"}
    assert json.dumps(summary)


def test_a_limit_that_nothing_meets_is_refused_with_the_nearest(tmp_path: Path) -> None:
    recipe = replace(RECIPE, limit="size=1kB", budget="8s")
    with pytest.raises(PlanError, match=r"nearest.*MB of size, allowed 0\.001") as caught:
        search(recipe, small(), load_device(recipe.device), {"onnx": OnnxExporter()}, tmp_path, silent)
    assert caught.value.exit_code == 14
    assert "size_bytes" in caught.value.binding


def test_what_cannot_be_searched_is_told_at_once(tmp_path: Path) -> None:
    device, exporters = load_device(RECIPE.device), {"onnx": OnnxExporter()}
    for recipe, model, device_, words in (
        (replace(RECIPE, limit="bytes=1kB"), small(), device, "bytes without --edge"),
        (replace(RECIPE, limit="energy=1mJ"), small(), replace(device, power_w={}), "knows no power"),
        (replace(RECIPE, budget="9s", prune_tokens="merge@0.7"), small(), device, "sets tokens and heads itself"),
        (replace(RECIPE, budget="9s", prune_heads="0.75"), small(), device, "--prune-heads 0.75 with a search"),
        (replace(RECIPE, budget="9s", channels_last=True), small(), device, "NCHW"),
        (replace(RECIPE, budget="9s"), small().evolve_quietly(onnx_path=tmp_path / "a.onnx"), device, "trained .onnx"),
    ):
        with pytest.raises(UsageError, match=words):
            search(recipe, model, device_, exporters, tmp_path, silent)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_search import RECIPE, small
from dataclasses import replace
from edgekit.devices.device import load_device
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.progress import silent
from edgekit.search.run import search
recipe = replace(RECIPE, limit="latency=10ms", budget="5min")
search(recipe, small(), load_device(recipe.device), {{"onnx": OnnxExporter()}}, Path(sys.argv[1]), silent)
"""


def test_a_search_that_is_killed_goes_on_with_what_it_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    place = state_path(RECIPE, small(), load_device(RECIPE.device))
    script = KILLED.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "work")], env=os.environ)
    end = time.monotonic() + 120
    while not (place.is_file() and "verified/" in place.read_text()):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = json.loads(place.read_text())
    verified = [key for key in known if key.startswith("verified/")]
    recipe = replace(RECIPE, limit="latency=10ms", budget="1s")
    found = search(recipe, small(), load_device(recipe.device), {"onnx": OnnxExporter()}, tmp_path / "again", silent)
    after = json.loads(place.read_text())
    assert {key: after[key] for key in known} == known
    assert [f"verified/{one.configuration}" for one in found.outcome.verified][: len(verified)] == verified
    assert found.winner.built.artifact is not None


def test_the_bundle_is_whole(result: ExportResult) -> None:
    assert Bundle.open(result.bundle.path).manifest.provenance.recipe["limit"] == "size=200kB"
