"""`--widths`, `--exits` and `--keep-task` from the option to what runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.adaptive import check_adaptive, parse_exits, parse_widths
from edgekit.bundle import Bundle
from edgekit.cli.main import cli
from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.pipeline import export_recipe
from edgekit.recipe import Recipe
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.load import load
from edgekit.zoo.fashion import fashion_cnn, fashion_vit
from edgekit.zoo.fashion_adaptive import EXITS, WIDTHS, fashion_vit_adaptive


@pytest.mark.parametrize(
    ("text", "widths"), [("1.0,0.75,0.5", (0.75, 0.5)), ("0.5", (0.5,)), ("0.5,1,0.75", (0.75, 0.5))]
)
def test_the_whole_width_is_there_anyway(text: str, widths: tuple[float, ...]) -> None:
    assert parse_widths(text) == widths


def test_the_whole_width_alone_asks_for_nothing() -> None:
    with pytest.raises(UsageError, match="the whole model alone"):
        parse_widths("1.0")


@pytest.mark.parametrize("text", ["", "half", "0.5;0.25", "0", "1.5,0.5", "-0.5"])
def test_widths_that_cannot_be_are_told(text: str) -> None:
    with pytest.raises(UsageError, match="allowed"):
        parse_widths(text)


def test_exits_are_auto_or_numbers_of_blocks() -> None:
    assert parse_exits("auto") is None and parse_exits("2,4") == (2, 4)
    for text in ("", "two", "2;4", "-1", "2,"):
        with pytest.raises(UsageError, match="allowed auto, none or numbers"):
            parse_exits(text)


def recipe(**options) -> Recipe:
    return Recipe.of({"source": "net", "device": "raspberry-pi-4", **options})


def test_what_cannot_be_made_is_refused_before_work() -> None:
    vit = fashion_vit()
    check_adaptive(recipe(widths="1.0,0.5", exits="2"), vit)
    with pytest.raises(SourceError, match="no encoder"):
        check_adaptive(recipe(widths="0.5"), fashion_cnn())
    with pytest.raises(UsageError, match="from 1 to 5"):
        check_adaptive(recipe(exits="9"), vit)
    with pytest.raises(UsageError, match="--widths with --prune-tokens"):
        check_adaptive(recipe(widths="0.5", prune_tokens="merge"), vit)
    with pytest.raises(UsageError, match=r"trained \.onnx file"):
        check_adaptive(recipe(exits="auto"), replace(vit, onnx_path=Path("net.onnx")))


def test_the_trained_sample_keeps_its_accuracy_at_every_width_and_brings_its_heads() -> None:
    """On 10,000 test images it loses 0.05 and 0.9 points; 128 tell a broken one from a whole one."""
    from edgekit.parity import run_model
    from edgekit.passes.adaptive.widths import SlimEncoder

    model = fashion_vit_adaptive()
    truth = np.asarray(model.labels)
    right = [
        float((run_model(SlimEncoder(width)(model), model.held_out)["logits"].argmax(1) == truth).mean())
        for width in WIDTHS
    ]
    assert right[0] > 0.86 and min(right) > right[0] - 0.05
    assert set(model.module.exits) == {str(depth) for depth in EXITS}  # type: ignore[union-attr, arg-type]


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float and of ONNX alone: what is tested does not hang on the precision."""
    path = tmp_path_factory.mktemp("adaptive") / "fashion.edgekit"
    options = {"widths": "1.0,0.5", "exits": "2", "format": "onnx", "quantize": "none", "report": False}
    export_recipe(Recipe.of({"source": "fashion-vit-adaptive", "device": "raspberry-pi-4", "output": path, **options}))
    return path


@pytest.fixture(scope="module")
def model() -> Model:
    return fashion_vit_adaptive()


def test_the_bundle_offers_the_whole_a_narrow_one_and_exits(bundle_path: Path) -> None:
    with Bundle.open(bundle_path) as bundle:
        manifest = bundle.manifest
        assert [variant.name for variant in manifest.variants] == ["onnx-fp32", "width-50", "exits"]
        assert manifest.part("width-50").size_bytes < 0.65 * manifest.part("model").size_bytes
        exits = manifest.variant("exits")
        assert exits.parts == ("stage-1", "stage-2") and [exit.part for exit in exits.exits] == ["exit-2"]
        assert exits.exits[0].curve[0].answered > 0.5 and exits.drop <= 1.0
        assert 0 < exits.shares[0] <= 1
        notes = " ".join(bundle.report["notes"])
    assert "expected calibration error" in notes and "at worst over a window" in notes


def test_exits_answer_as_their_parts_do_and_most_leave_early(bundle_path: Path, model: Model) -> None:
    images = np.concatenate([sample["image"].numpy() for sample in model.held_out])
    with Coordinator(bundle_path, policy="local:exits", threads=1) as coordinator:
        answers = [coordinator.ask({"image": image[None]}) for image in images]
        together = coordinator.ask({"image": images})
    with Coordinator(bundle_path, policy="local:onnx-fp32", threads=1) as coordinator:
        whole = coordinator.ask({"image": images}).outputs["logits"]
    logits = np.concatenate([answer.outputs["logits"] for answer in answers])
    early = np.array([answer.exited for answer in answers])
    assert 0.4 < early.mean() < 1
    truth = np.asarray(model.labels)
    assert (logits.argmax(1) == truth).mean() >= (whole.argmax(1) == truth).mean() - 0.02
    np.testing.assert_allclose(logits[~early], whole[~early], rtol=1e-3, atol=1e-3)
    # One by one a window's schedule may hold back a few that the schedule of the whole batch lets go on.
    held_back = int(early.sum()) - together.left[0]
    assert 0 <= held_back <= 3 and sum(together.left) == len(images)
    differs = (np.abs(together.outputs["logits"] - logits) > 1e-3).any(1)
    assert differs.sum() == held_back and early[differs].all()


def run(bundle: Path, image: Path, *words: str) -> dict:
    arguments = ["run", str(bundle), "-i", str(image), "--threads", "1", "--json", *words]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return json.loads(result.stdout)["answer"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    path = tmp_path_factory.mktemp("image") / "x.npz"
    np.savez(path, image=model.held_out[0]["image"].numpy())
    return path


def test_the_command_line_runs_a_variant_a_budget_and_a_low_battery(bundle_path: Path, image: Path) -> None:
    assert run(bundle_path, image, "--variant", "width-50")["variant"] == "width-50"
    with Bundle.open(bundle_path) as bundle:
        drops = {variant.name: variant.drop for variant in bundle.manifest.variants}
    ample = run(bundle_path, image, "--budget", "10s")
    assert ample["choice"] == "" and not ample["degraded"]
    assert drops[ample["variant"]] == min(drops.values())
    low = run(bundle_path, image, "--battery", "10%")
    assert low["variant"] != "onnx-fp32"
    assert ("the battery is low" in low["choice"]) == (drops[low["variant"]] > min(drops.values()))
    late = run(bundle_path, image, "--budget", "0.1us")
    assert late["degraded"] and "is the nearest" in late["reason"]


def test_evaluate_reports_every_variant_and_the_bound_of_any_choice(
    bundle_path: Path, tmp_path: Path, model: Model
) -> None:
    data = tmp_path / "data.npz"
    images = np.concatenate([sample["image"].numpy() for sample in model.held_out[:64]])
    np.savez(data, image=images, labels=np.asarray(model.labels[:64]))
    words = ["evaluate", str(bundle_path), "--data", str(data), "--variants", "--threads", "1", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    found = json.loads(result.stdout)
    rows, bound = found["variants"], found["oracle"]
    assert list(rows) == ["onnx-fp32", "width-50", "exits"]
    assert bound["accuracy"] >= max(row["accuracy"] for row in rows.values())
    assert bound["mean_ms"] <= max(row["mean_ms"] for row in rows.values())
    assert sum(bound["shares"].values()) == pytest.approx(1)
    assert rows["exits"]["left_early"] > 0.4 and rows["onnx-fp32"]["left_early"] == 0
    np.savez(data, image=images)
    bare = CliRunner().invoke(cli, [*words[:-1]])
    assert bare.exit_code != 0 and "have no classes" in bare.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--variant", "width-33"), "unknown variant"),
        (("--variant", "width-50", "--budget", "2ms"), "--variant with --budget"),
        (("--budget", "2ms", "--part", "model"), "no choice of a variant"),
        (("--battery", "120%"), "no share of 1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(bundle_path: Path, image: Path, words, message: str) -> None:
    result = CliRunner().invoke(cli, ["run", str(bundle_path), "-i", str(image), *words])
    assert result.exit_code != 0 and message in result.stderr


def test_one_task_of_several_is_packed_without_the_experts_of_the_others(tmp_path: Path) -> None:
    """Against the whole of three: smaller, and its answers the same."""
    from edgekit.parity import run_model
    from edgekit.zoo.fashion_tasks import fashion_tasks

    path = tmp_path / "group.edgekit"
    options = {"keep_task": "group", "format": "onnx", "quantize": "none", "report": False}
    export_recipe(Recipe.of({"source": "fashion-vit-tasks", "device": "raspberry-pi-4", "output": path, **options}))
    several = fashion_tasks()
    samples = several.held_out[:16]
    wanted = run_model(several, samples)["group"]
    with Bundle.open(path) as bundle, load(bundle, threads=1) as session:
        (part,) = bundle.manifest.parts
        answers = session.run({"image": np.concatenate([sample["image"].numpy() for sample in samples])})
    assert list(answers) == ["group"]
    np.testing.assert_allclose(answers["group"], wanted, rtol=1e-3, atol=1e-3)
    assert part.size_bytes < 0.75 * several.size_bytes
