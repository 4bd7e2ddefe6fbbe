"""The command around the pipeline: options become a Recipe, a result becomes words or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import Result

from edgekit.bundle import Bundle
from edgekit.bundle.loop import Carried, Choice, Loop
from edgekit.cli.main import cli
from edgekit.errors import QualityError
from edgekit.progress import Progress
from edgekit.recipe import Recipe, recipe_options
from edgekit.report.model import Candidate, EvaluationReport, Fallback, Latency, Quality

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

REPORT = EvaluationReport(
    bundle="cats",
    device="raspberry-pi-5",
    device_title="Raspberry Pi 5, 8 GB",
    format="onnx",
    precision="int8",
    quality=Quality(
        measure="top1_agreement",
        value=0.96,
        low=0.9,
        high=0.99,
        samples=100,
        reference="float model",
        sqnr_db=25.5,
    ),
    latency_ms=Latency(host=4.0, float_host=8.0, speedup=2.0, threads=1),
    candidates=(
        Candidate(format="onnx", precision="fp32", chosen=False, why_not="2.00x the latency", host_p50_ms=8.0),
        Candidate(
            format="onnx",
            precision="int8",
            chosen=True,
            sqnr_db=25.5,
            agreement=0.96,
            host_p50_ms=4.0,
            predicted_ms=20.0,
            predicted_low_ms=15.0,
            predicted_high_ms=26.0,
            size_bytes=5_320_000,
        ),
        Candidate(format="litert", precision="int8", chosen=False, why_not="the package is missing"),
        Candidate(format="executorch", precision="-", chosen=False, why_not="not built: 31.2 ms expected at best"),
    ),
    fallbacks=(Fallback(layer="conv_3", precision="fp32", why="it harms most"),),
    seconds={"all": 12.0},
    peak_memory_bytes=1_500_000_000,
)


@dataclass
class FakePipeline:
    """Stands in the place of the build flow: remembers the recipe, answers with a bundle on disk."""

    path: Path
    error: Exception | None = None
    recipes: list[Recipe] = field(default_factory=list)

    def export_recipe(self, recipe: Recipe, *, fresh: bool = False, progress: Progress) -> Any:
        self.recipes.append(recipe)
        print("chatter of a library")  # noqa: T201
        progress("calibrate", 1, 2)
        if self.error is not None:
            raise self.error
        bundle = Bundle.open(self.path)
        bundle.report = REPORT.to_json()
        told = {"bundle": str(self.path), "parts": []}
        return SimpleNamespace(bundle=bundle, search=None, to_json=lambda: told)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> FakePipeline:
    fake = FakePipeline(bundle)
    monkeypatch.setitem(sys.modules, "edgekit.pipeline", fake)
    return fake


def test_every_field_of_the_recipe_is_an_option() -> None:
    made = cli.get_command(click.Context(cli), "export")
    assert made is not None
    names = {param.name for param in made.params}
    assert {option.name for option in recipe_options()} <= names


def test_what_is_not_given_keeps_the_recipes_default(invoke: Invoke, pipeline: FakePipeline) -> None:
    invoke("export", "minilm", "--device", "jetson")
    assert pipeline.recipes == [Recipe(source="minilm", device="jetson")]


def test_options_become_the_recipe(invoke: Invoke, pipeline: FakePipeline) -> None:
    invoke(
        *("export", "my.models:build", "-d", "raspberry-pi", "-o", "out.edgekit", "--format", "onnx"),
        *("--quantize", "int8", "-c", "photos", "--max-drop", "1.5", "--min-sqnr", "20", "--no-equalize"),
        *("--learned-rounding", "--seed", "3", "--threads", "2", "--include-float", "--force", "--no-report"),
    )
    assert pipeline.recipes == [
        Recipe(
            source="my.models:build",
            device="raspberry-pi",
            output="out.edgekit",
            format="onnx",
            quantize="int8",
            calibration="photos",
            max_drop=1.5,
            min_sqnr=20.0,
            equalize=False,
            learned_rounding=True,
            seed=3,
            threads=2,
            include_float=True,
            force=True,
            report=False,
        )
    ]


def test_a_recipe_file_is_read_and_options_win(invoke: Invoke, pipeline: FakePipeline, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('source = "minilm"\ndevice = "jetson"\nequalize = false\nseed = 5\n')
    invoke("export", "--recipe", path, "--seed", "6")
    assert pipeline.recipes == [Recipe(source="minilm", device="jetson", equalize=False, seed=6)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('sorce = "minilm"', "did you mean 'source'?"),
        ('source = "minilm"\ndevice = 3', "allowed str"),
        ("x", "not TOML"),
    ],
)
def test_a_wrong_recipe_file_is_a_usage_error(
    invoke: Invoke, pipeline: FakePipeline, tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    assert says in invoke("export", "--recipe", path, code=2).stderr
    assert pipeline.recipes == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "no source is given"),
        (("minilm",), 2, "no device is given"),
        (("minilm", "-d", "missing.toml"), 5, "no profile at missing.toml"),
        (("minilm", "-d", "jetson", "--seed", "x"), 2, "--seed"),
        (("minilm", "-d", "jetson", "--threads", "0"), 2, "allowed 1 or more"),
        (("minilm", "-d", "jetson", "--recipe", "missing.toml"), 2, "missing.toml"),
    ],
)
def test_a_wrong_command_line_ends_before_torch_is_loaded(
    invoke: Invoke, pipeline: FakePipeline, arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert says in invoke("export", *arguments, code=code).stderr
    assert pipeline.recipes == []


def test_words_show_candidates_verdicts_fallbacks_and_the_next_step(
    invoke: Invoke, pipeline: FakePipeline, bundle: Path
) -> None:
    result = invoke("export", "minilm", "--device", "raspberry-pi")
    for wanted in (
        "Candidates for Raspberry Pi 5, 8 GB",
        "96.0 %",
        "25.5",
        "20.0 (15.0-26.0)",
        "5.32 MB",
        "chosen",
        "2.00x the latency",
        "the package is missing",
        "it harms most",
        "top-1 agreement 96.0 % (95 %: 90.0 % to 99.0 %) on 100 samples against float model; SQNR 25.5 dB",
        "4.00 ms at 1 thread, 2.00x the speed of its float twin",
        "took:",
        f"next: edgekit run {bundle} --input FILE",
    ):
        assert wanted in result.stdout
    row = next(line for line in result.stdout.splitlines() if "chosen" in line)
    assert row.split()[:7] == ["onnx", "int8", "96.0", "%", "25.5", "4.00", "2.00"]
    assert "calibrate" in result.stderr
    left_out = next(line for line in result.stdout.splitlines() if line.startswith("executorch"))
    assert left_out.split()[:3] == ["executorch", "-", "-"]  # of which no precision is named
    assert left_out.split().count("-") == 6


def test_the_time_told_is_that_of_the_whole_command(
    invoke: Invoke, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 261.5])
    monkeypatch.setattr("edgekit.cli.export.time", SimpleNamespace(perf_counter=lambda: next(now)))
    assert "161.5 s" in invoke("export", "minilm", "--device", "raspberry-pi").stdout


@pytest.mark.parametrize("encoding", ["bytes", "ids"])
def test_what_is_run_step_by_step_leads_on_to_text_and_to_serve(
    invoke: Invoke, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch, encoding: Any
) -> None:
    feed = Choice(input="token", output="logits", start=0, stop=1, encoding=encoding)
    carried = (Carried(output="next_state", input="state"),)
    part = SimpleNamespace(name="model", loop=Loop(carried=carried, feed=feed, max_steps=9))
    stepped = SimpleNamespace(parts=[part], variants=[SimpleNamespace(parts=["model"])], tiers={})
    opened = SimpleNamespace(path=pipeline.path, manifest=stepped, report=None, size_bytes=1, signed_by=None)
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, path: opened))
    told = invoke("export", "docstring-lm", "--device", "raspberry-pi").stdout
    assert f"edgekit serve {pipeline.path} --tier device" in told
    assert ("edgekit run" in told) == (encoding == "bytes")
    assert "--input FILE" not in told


def test_libraries_do_not_reach_stdout(invoke: Invoke, invoke_json: InvokeJson, pipeline: FakePipeline) -> None:
    payload = invoke_json("export", "minilm", "--device", "jetson")
    assert payload == {"schema_version": 1, "bundle": str(pipeline.path), "parts": []}
    assert "chatter" not in invoke("export", "minilm", "--device", "jetson").stdout


def test_a_refusal_is_told_with_its_layers(invoke: Invoke, invoke_json: InvokeJson, pipeline: FakePipeline) -> None:
    pipeline.error = QualityError("drop 3.10 points, allowed 1", layers=[("conv_1", 9.0)], hint="raise --max-drop")
    result = invoke("export", "minilm", "--device", "jetson", code=8)
    assert result.stdout == ""
    assert "conv_1" in result.stderr
    failure = invoke_json("export", "minilm", "--device", "jetson", code=8)["error"]
    assert failure["layers"] == [{"name": "conv_1", "sqnr_db": 9.0}]
