from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.bundle.golden import Golden, closeness_db, read_golden, write_golden
from edgekit.bundle.manifest import Preprocess
from edgekit.errors import BundleError

COLOUR = Preprocess(resize=8, crop=8, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)).pixels()
GREY = Preprocess(mode="L", resize=8, crop=8, mean=(127.5,), std=(127.5,), layout="NHWC").pixels()


def images(shape: tuple[int, ...], pixels, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return pixels.normal(drawn)


@pytest.mark.parametrize(("pixels", "shape"), [(COLOUR, (1, 3, 8, 8)), (GREY, (1, 8, 8, 1))])
def test_images_of_whole_pixels_come_back_to_the_bit_in_a_quarter_of_the_bytes(pixels, shape) -> None:
    inputs = [{"image": images(shape, pixels, seed)} for seed in range(3)]
    answers = [{"y": np.float32([[seed]])} for seed in range(3)]
    data = write_golden(inputs, answers, pixels)
    assert len(data) < len(write_golden(inputs, answers)) * 0.6
    back, again = read_golden(data, pixels)
    for want, got in zip(inputs, back, strict=True):
        np.testing.assert_array_equal(got["image"], want["image"])
    assert [float(one["y"][0, 0]) for one in again] == [0, 1, 2]


def test_what_is_no_image_is_kept_as_it_is() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    inputs = [{"x": x, "ids": np.arange(4).reshape(1, 4)}]
    back, _ = read_golden(write_golden(inputs, [{"y": x}], COLOUR), COLOUR)
    np.testing.assert_array_equal(back[0]["x"], x)
    assert back[0]["ids"].dtype == np.int64


@pytest.mark.parametrize("shape", [(1, 24, 24, 24), (1, 197, 384), (1, 10), (3,), ()])
def test_features_between_the_parts_of_a_split_are_kept_whatever_their_shape(shape: tuple[int, ...]) -> None:
    features = [{"features": np.float32(np.random.default_rng(seed).random(shape))} for seed in range(2)]
    for pixels in (COLOUR, GREY):
        back, _ = read_golden(write_golden(features, [{"y": np.zeros(1)}] * 2, pixels), pixels)
        for want, got in zip(features, back, strict=True):
            np.testing.assert_array_equal(got["features"], want["features"])


def test_values_that_are_no_numbers_are_no_pixels() -> None:
    x = np.full((1, 3, 8, 8), np.nan, np.float32)
    back, _ = read_golden(write_golden([{"x": x}], [{"y": np.zeros(1)}], COLOUR), COLOUR)
    assert np.isnan(back[0]["x"]).all()


def test_the_same_arrays_give_the_same_bytes() -> None:
    arrays = [{"x": np.float32([[1, 2]])}]
    assert write_golden(arrays, arrays) == write_golden(arrays, arrays)


@pytest.mark.parametrize(
    "data", [b"", b"not a zip", b"PK\3\4 no zip", write_golden([{"x": np.zeros(1)}], [{"y": np.zeros(1)}])[:-30]]
)
def test_what_cannot_be_read_is_told(data: bytes) -> None:
    with pytest.raises(BundleError, match="golden answers") as told:
        read_golden(data)
    assert "pickle" not in str(told.value)


def test_pixels_without_a_preprocess_are_told() -> None:
    data = write_golden([{"image": images((1, 3, 8, 8), COLOUR)}], [{"y": np.zeros(1)}], COLOUR)
    with pytest.raises(BundleError, match="without a preprocess"):
        read_golden(data)


def test_closeness_is_the_sqnr_of_the_worst_output() -> None:
    want = {"a": np.float32([3, 4]), "b": np.float32([10, 0])}
    got = {"a": np.float32([3, 4]), "b": np.float32([10, 1])}
    assert closeness_db(want, got) == pytest.approx(20.0)
    assert closeness_db(want, want) == math.inf


@pytest.mark.parametrize(
    "got",
    [
        {},
        {"a": np.float32([[1.0, 2.0]])},
        {"a": np.float32([np.nan, 2.0])},
        {"a": np.float32([np.inf, 2.0])},
    ],
    ids=["missing", "another shape", "nan", "inf"],
)
def test_what_is_no_answer_is_infinitely_far(got: dict[str, np.ndarray]) -> None:
    assert closeness_db({"a": np.float32([1.0, 2.0])}, got) == -math.inf


def test_whole_numbers_are_equal_or_wrong() -> None:
    assert closeness_db({"k": np.array([1, 2])}, {"k": np.array([1, 2])}) == math.inf
    assert closeness_db({"k": np.array([1, 2])}, {"k": np.array([1, 3])}) == -math.inf


def test_a_manifest_names_parts_and_assets_that_are_there(net) -> None:
    entry = Golden(part="model", file="golden.npz", samples=1, least_sqnr_db=40.0)
    with pytest.raises(ValueError, match="which are not here"):
        net.manifest(golden=(entry,))
