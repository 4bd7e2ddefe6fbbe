from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.bundle.manifest import Preprocess
from edgekit.data import Shape, guess_preprocess, load_data
from edgekit.errors import DataError

PREPROCESS = Preprocess(resize=8, crop=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGE = Shape({"image": torch.zeros(1, 3, 8, 8)}, {"image": {0: "batch"}}, PREPROCESS, labels=("cat", "dog"))
PAIR = Shape({"left": torch.zeros(1, 4), "right": torch.zeros(1, 2, dtype=torch.int64)})
ROW = Shape({"x": torch.zeros(1, 4)})


def grey(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 9), (value,) * 3).save(path)
    return path


def first(samples: tuple[dict[str, torch.Tensor], ...], name: str) -> list[float]:
    return [float(sample[name].flatten()[0]) for sample in samples]


def test_every_fourth_image_by_path_is_held_out(tmp_path: Path) -> None:
    for number in range(9):
        grey(tmp_path / f"{8 - number}.png", 8 - number)
    data = load_data(tmp_path, IMAGE)
    assert first(data.calibration, "image") == [0, 1, 2, 4, 5, 6, 8]
    assert first(data.held_out, "image") == [3, 7]
    assert data.labels == ()


def test_one_item_is_calibrated_on_and_of_two_one_is_held_out() -> None:
    assert len(load_data([torch.ones(4)], ROW).held_out) == 0
    pair = load_data([torch.ones(4), 2 * torch.ones(4)], ROW)
    assert (first(pair.calibration, "x"), first(pair.held_out, "x")) == ([1], [2])


def test_limits_spread_over_the_whole_set(tmp_path: Path) -> None:
    for number in range(40):
        grey(tmp_path / f"{number:02}.png", number)
    data = load_data(tmp_path, IMAGE, calibration_limit=3, held_out_limit=2)
    assert first(data.calibration, "image") == [0, 13, 26]
    assert first(data.held_out, "image") == [3, 23]


def test_class_folders_are_read_as_labels(tmp_path: Path) -> None:
    for number in range(4):
        grey(tmp_path / "dog" / f"{number}.png", number)
        grey(tmp_path / "cat" / f"{number}.png", number)
    assert load_data(tmp_path, IMAGE).labels == (0, 1)


def test_numbered_folders_are_classes_and_strange_ones_are_not(tmp_path: Path) -> None:
    for name in ("0", "1"):
        for number in range(4):
            grey(tmp_path / "numbers" / name / f"{number}.png", 0)
            grey(tmp_path / "animals" / f"{name}-lizard" / f"{number}.png", 0)
            grey(tmp_path / "animals" / "newt" / f"{number}.png", 0)
    assert load_data(tmp_path / "numbers", IMAGE).labels == (0, 1)
    assert load_data(tmp_path / "animals", IMAGE).labels == ()


@pytest.mark.parametrize("labels,reason", [((), "the model names no classes"), (("cat", "dog"), "2 classes of other")])
def test_folders_that_are_no_labels_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: tuple[str, ...], reason: str
) -> None:
    for name in ("newt", "eft", "salamander", "axolotl"):
        grey(tmp_path / name / "0.png", 0)
    with caplog.at_level(logging.WARNING, "edgekit"):
        assert load_data(tmp_path, replace(IMAGE, labels=labels)).labels == ()
    (said,) = caplog.messages
    assert "the sub-folders axolotl, eft, newt, ... are not used as labels" in said and reason in said


def test_folders_that_are_labels_or_a_flat_folder_need_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        grey(tmp_path / "classes" / name / "0.png", 0)
        grey(tmp_path / "flat" / f"{name}.png", 0)
    with caplog.at_level(logging.WARNING, "edgekit"):
        load_data(tmp_path / "classes", IMAGE)
        load_data(tmp_path / "flat", replace(IMAGE, labels=()))
    assert caplog.messages == []


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(DataError, match=r"b\.png"):
        load_data(tmp_path, IMAGE)


@pytest.mark.parametrize("empty", [[], iter(())])
def test_an_empty_set_is_refused(empty: object) -> None:
    with pytest.raises(DataError, match="empty"):
        load_data(empty, ROW)  # type: ignore[arg-type]


def test_an_empty_folder_and_a_wrong_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        load_data(tmp_path, IMAGE)
    with pytest.raises(DataError, match="no calibration data"):
        load_data(tmp_path / "nowhere", IMAGE)


def test_images_for_a_model_that_takes_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x \[1, 4\]"):
        load_data(grey(tmp_path / "a.png", 1), ROW)


def test_batches_of_a_data_loader_become_samples_with_labels() -> None:
    rows = torch.utils.data.TensorDataset(torch.arange(32.0).reshape(8, 4), torch.arange(8))
    data = load_data(torch.utils.data.DataLoader(rows, batch_size=3), ROW)
    assert first(data.calibration, "x") == [0, 4, 8, 16, 20, 24]
    assert first(data.held_out, "x") == [12, 28]
    assert data.labels == (3, 7)
    assert all(sample["x"].shape == (1, 4) for sample in data.calibration)


def test_an_endless_iterable_is_read_no_further_than_needed() -> None:
    def endless() -> object:
        number = 0
        while True:
            yield torch.full((4,), float(number))
            number += 1

    data = load_data(endless(), ROW, calibration_limit=6)  # type: ignore[arg-type]
    assert first(data.calibration, "x") == [0, 1, 2, 4, 5, 6]
    assert first(data.held_out, "x") == [3, 7]


def test_dicts_come_in_any_order_and_tuples_in_the_models() -> None:
    left, right = np.ones(4), np.array([1, 2])
    by_name = load_data([{"right": right, "left": left}], PAIR).calibration[0]
    by_place = load_data([(left, right)], PAIR).calibration[0]
    for sample in (by_name, by_place):
        assert list(sample) == ["left", "right"]
        assert (sample["left"].dtype, sample["right"].dtype) == (torch.float32, torch.int64)
        assert (sample["left"].shape, sample["right"].shape) == ((1, 4), (1, 2))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.ones(5), r"\[1, 5\], allowed torch.float32 \[1, 4\]"),
        (torch.ones(4, dtype=torch.int64), "int64"),
        (torch.tensor([1, 2, float("nan"), 4]), "NaN"),
        ((torch.ones(4), torch.ones(4), torch.ones(4)), "takes 1: x"),
        ({"y": torch.ones(4)}, r"\['y'\], allowed \['x'\]"),
        ("text", "str"),
    ],
)
def test_what_does_not_fit_is_named(item: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data([item], ROW)


def test_array_files_give_rows_and_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20, dtype=np.float32).reshape(5, 4))
    assert first(load_data(tmp_path / "x.npy", ROW).calibration, "x") == [0, 4, 8, 16]
    np.savez(tmp_path / "pair.npz", left=np.ones((4, 4)), right=np.ones((4, 2), np.int64), labels=np.arange(4))
    data = load_data(tmp_path / "pair.npz", PAIR)
    assert (len(data.calibration), data.labels) == (3, (3,))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy"):
        load_data(tmp_path / "x.npy", ROW)


def test_a_dynamic_dimension_may_differ() -> None:
    shape = Shape({"ids": torch.zeros(1, 8, dtype=torch.int64)}, {"ids": {1: "sequence"}})
    assert load_data([torch.ones(1, 5, dtype=torch.int64)], shape).calibration[0]["ids"].shape == (1, 5)


def test_preprocessing_is_guessed_for_square_images_only() -> None:
    guessed = guess_preprocess({"x": torch.zeros(1, 3, 224, 224)})
    assert guessed is not None
    assert (guessed.resize, guessed.crop, guessed.mode) == (256, 224, "RGB")
    assert guess_preprocess({"x": torch.zeros(1, 3, 224, 200)}) is None
    assert guess_preprocess({"x": torch.zeros(1, 4)}) is None
