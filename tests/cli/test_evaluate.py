from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from edgekit.cli.evaluate import Lost
from edgekit.cli.evaluation_data import folder_classes
from edgekit.report.metrics import wilson_interval

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

# conftest's pictures: one of six lies in the wrong folder
RIGHT = 5 / 6


def test_class_folders_give_accuracy_with_its_interval(invoke_json: InvokeJson, bundle: Path, photos: Path) -> None:
    quality = invoke_json("evaluate", bundle, "--data", photos)["quality"]
    assert (quality["measure"], quality["samples"], quality["reference"]) == ("accuracy", 6, "labels")
    assert quality["value"] == pytest.approx(RIGHT)
    assert (quality["low"], quality["high"]) == pytest.approx(wilson_interval(RIGHT, 6))
    assert quality["top1_agreement"] is None


def test_a_float_part_adds_its_accuracy_and_the_agreement(
    invoke: Invoke, invoke_json: InvokeJson, bundle_with_float: Path, photos: Path
) -> None:
    found = invoke_json("evaluate", bundle_with_float, "--data", photos)
    quality, lost = found["quality"], found["lost"]
    assert (lost["points"], lost["p_value"]) == (0.0, 1.0) and lost["low"] < 0 < lost["high"]
    assert quality["float_accuracy"] == pytest.approx(RIGHT)
    assert quality["top1_agreement"] == 1.0
    # the float part is the same net with its answers times 9/8: noise is an eighth of the signal of 9/8
    assert quality["sqnr_db"] == pytest.approx(20 * np.log10(9), abs=0.1)
    assert "+0.00 points lost (95 %: -" in invoke("evaluate", bundle_with_float, "--data", photos).stdout


def test_what_is_lost_is_told_with_its_interval_and_how_likely_it_is_chance() -> None:
    """Of 50 samples 12 are right before alone and 2 behind alone: Newcombe (1998), and the binomial tail of 2 in 14."""
    before = np.repeat([True, True, False], (36, 12, 2))
    after = np.repeat([True, False, True], (36, 12, 2))
    lost = Lost.of(before, after)
    assert (lost.points, lost.low, lost.high) == pytest.approx((20.0, 5.69, 34.04), abs=5e-3)
    assert lost.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert str(lost) == "+20.00 points lost (95 %: +5.69 to +34.04; McNemar's p 0.013)"


def test_without_classes_it_is_agreement_with_the_float_part(
    invoke_json: InvokeJson, bundle_with_float: Path, photos: Path
) -> None:
    quality = invoke_json("evaluate", bundle_with_float, "--data", photos / "red")["quality"]
    assert (quality["measure"], quality["value"], quality["samples"]) == ("top1_agreement", 1.0, 2)
    assert "float part" in quality["reference"]


def test_another_bundle_is_a_reference(
    invoke_json: InvokeJson, bundle: Path, bundle_with_float: Path, photos: Path
) -> None:
    arguments = ("evaluate", bundle, "--data", photos / "red", "--reference", bundle_with_float)
    quality = invoke_json(*arguments)["quality"]
    assert (quality["measure"], quality["reference"]) == ("top1_agreement", str(bundle_with_float))


def test_a_source_is_a_reference(
    invoke_json: InvokeJson, bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eager_brightest.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, image):\n"
        "        return image.mean((2, 3)) * 8\n"
        "def build():\n"
        "    return Net(), torch.zeros(1, 3, 8, 8)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ("evaluate", bundle, "--data", photos / "red", "--reference", "eager_brightest:build")
    quality = invoke_json(*arguments)["quality"]
    assert quality["value"] == 1.0
    assert quality["sqnr_db"] == "Infinity" or quality["sqnr_db"] > 120


def test_no_float_model_and_no_classes_is_a_usage_error(invoke: Invoke, bundle: Path, photos: Path) -> None:
    result = invoke("evaluate", bundle, "--data", photos / "red", code=2)
    assert "nowhere_at_all:build" in result.stderr
    assert "--reference" in result.stderr


def test_rows_of_an_npz_file_bring_their_labels(invoke_json: InvokeJson, bundle: Path, tmp_path: Path) -> None:
    pictures = np.full((3, 8, 8, 3), 20, np.uint8)
    for number in range(3):
        pictures[number, ..., number] = 250
    np.savez(tmp_path / "rows.npz", pictures=pictures, labels=np.array([0, 1, 0]))
    quality = invoke_json("evaluate", bundle, "--data", tmp_path / "rows.npz")["quality"]
    assert (quality["value"], quality["samples"]) == (pytest.approx(2 / 3), 3)

    tensors = np.zeros((2, 3, 8, 8), np.float32)
    tensors[0, 0] = tensors[1, 1] = 1
    np.savez(tmp_path / "tensors.npz", image=tensors, labels=np.array([0, 1]))
    assert invoke_json("evaluate", bundle, "--data", tmp_path / "tensors.npz")["quality"]["value"] == 1.0


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": np.zeros((2, 3, 8, 8), np.float32), "labels": np.zeros(3, np.int64)},
        {"image": np.zeros((2, 3, 8, 8), np.float32), "labels": np.zeros(2)},
        {"image": np.zeros((2, 3, 8, 8), np.float32), "more": np.zeros(2)},
        {"image": np.zeros((0, 3, 8, 8), np.float32), "labels": np.zeros(0, np.int64)},
    ],
    ids=["lengths", "float labels", "unknown array", "empty"],
)
def test_rows_that_do_not_fit_are_a_data_error(
    invoke: Invoke, bundle: Path, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    invoke("evaluate", bundle, "--data", tmp_path / "rows.npz", code=4)


def test_limit_is_spread_over_the_classes(invoke_json: InvokeJson, bundle: Path, photos: Path) -> None:
    quality = invoke_json("evaluate", bundle, "--data", photos, "--limit", "3")["quality"]
    assert (quality["samples"], quality["value"]) == (3, 1.0)


def test_an_empty_folder_is_a_data_error(invoke: Invoke, bundle: Path, tmp_path: Path) -> None:
    invoke("evaluate", bundle, "--data", tmp_path, code=4)
    invoke("evaluate", bundle, "--data", tmp_path / "missing", code=4)


def test_folders_are_classes_only_where_all_of_them_are(photos: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(photos, mixed)
    (mixed / "red").rename(mixed / "ruby")
    files = sorted(mixed.rglob("*.png"))
    assert folder_classes(mixed, files, ("red", "green", "blue")) is None
    assert folder_classes(mixed, files, ("ruby, red", "green", "blue")) == [2, 2, 1, 1, 0, 0]


def test_folders_may_bear_class_numbers(tmp_path: Path) -> None:
    files = [tmp_path / "2" / "a.png", tmp_path / "0" / "b.png"]
    assert folder_classes(tmp_path, files, ("x", "y", "z")) == [2, 0]
    assert folder_classes(tmp_path, files, ("x", "y")) is None
