from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.contexts import smoothed
from edgekit.runtimes.codecs.entropy import MAX_SYMBOL
from edgekit.runtimes.codecs.tables import read_tables, write_tables
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    from conftest import Case


def laplace(samples: int, channels: int, seed: int = 0, positions: tuple[int, ...] = (7, 7)) -> np.ndarray:
    fade = np.exp(-np.arange(channels) / (channels / 6)).reshape(-1, *(1,) * len(positions))
    return (np.random.default_rng(seed).laplace(size=(samples, channels, *positions)) * fade).astype(np.float32)


def codec_of(tables: bytes, shape: tuple[int, ...], rates: int) -> TransformCodec:
    return TransformCodec([TensorSpec("feature", "float32", ("batch", *shape))], rates, tables)


def reference_symbol(value: float, step: float, rounding: float) -> int:
    """One coefficient, float32 by float32 operation."""
    scaled = np.float32(value) / np.float32(step)
    size = math.floor(np.float32(abs(scaled)) + np.float32(rounding))
    return int(math.copysign(size, scaled))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=6, max_size=6), rate=st.integers(0, 2))
def test_symbols_and_values_are_those_of_the_reference(values: list[float], rate: int) -> None:
    steps, rounding = (0.3, 0.9, 2.7), 0.4
    tables = fit_transform_tables(laplace(40, 3, positions=(2,)), steps, rounding=rounding)
    codec = codec_of(tables, (3, 2), 3)
    feature = np.array(values, np.float32).reshape(1, 3, 2)
    decoded = codec.decode(codec.encode([feature], rate), [feature.shape], rate)[0]
    index = read_tables(tables, "transform")[1]["index"][rate]
    for channel in range(3):
        for position in range(2):
            symbol = reference_symbol(feature[0, channel, position], steps[rate], rounding)
            bucket = min(max(symbol, -3), 3) + 3
            expected = (np.float32(symbol) + codec.offsets[index[channel], bucket]) * np.float32(steps[rate])
            assert decoded[0, channel, position] == expected


def test_nearest_rounding_takes_ties_outwards_on_both_sides() -> None:
    tables = fit_transform_tables(laplace(40, 1, positions=()), (1.0,))
    codec = codec_of(tables, (1,), 1)
    symbols = codec.quantize(np.array([[0.5], [-0.5], [1.5], [-2.5], [0.4999]], np.float32), 0)
    assert symbols.ravel().tolist() == [1, -1, 2, -3, 0]


@pytest.mark.parametrize("per_position", [False, True])
def test_held_out_bytes_are_near_the_entropy_of_the_source(per_position: bool) -> None:
    """Laplace channels of known scale: the exact entropy of each quantized channel is the bound."""
    channels, step = 24, 0.1
    tables = fit_transform_tables(laplace(256, channels), (step, 0.3), per_position=per_position)
    codec, feature = codec_of(tables, (channels, 7, 7), 2), laplace(40, channels, seed=1)
    bits = 0.0
    for scale in np.exp(-np.arange(channels) / (channels / 6)):
        inner = 1 - math.exp(-step / 2 / scale)
        outer = [math.exp(-(k - 0.5) * step / scale) * (1 - math.exp(-step / scale)) / 2 for k in range(1, 2000)]
        bits += 49 * -(inner * math.log2(inner) + 2 * sum(p * math.log2(p) for p in outer if p > 0))
    assert len(codec.encode([feature], 0)) <= 1.02 * 40 * bits / 8


def test_offsets_lower_the_error() -> None:
    tables = fit_transform_tables(laplace(100, 12), (1.5,))
    settings, arrays = read_tables(tables, "transform")
    plain = write_tables("transform", settings, arrays | {"offsets": np.zeros_like(arrays["offsets"])})
    feature, errors = laplace(30, 12, seed=2), []
    for data in (tables, plain):
        codec = codec_of(data, (12, 7, 7), 1)
        decoded = codec.decode(codec.encode([feature], 0), [feature.shape], 0)[0]
        errors.append(float(np.square(decoded - feature).mean()))
    assert errors[0] < 0.97 * errors[1]


def test_a_rate_may_send_the_leading_channels_only() -> None:
    tables = fit_transform_tables(laplace(40, 8), (0.1, 0.1001), kept=(8, 3))
    codec, feature = codec_of(tables, (8, 7, 7), 2), laplace(2, 8, seed=3)
    decoded = codec.decode(codec.encode([feature], 1), [feature.shape], 1)[0]
    assert not decoded[:, 3:].any() and decoded[:, :3].any()
    feature[:, 3:] = 7
    assert (codec.decode(codec.encode([feature], 1), [feature.shape], 1)[0] == decoded).all()
    feature[0, 7, 0, 0] = np.nan
    with pytest.raises(CodecError):
        codec.encode([feature], 1)


def test_what_calibration_never_saw_escapes_and_comes_back() -> None:
    codec = codec_of(fit_transform_tables(laplace(40, 6), (0.1,)), (6, 7, 7), 1)
    feature = laplace(1, 6, seed=4)
    feature[0, 5, 0, 0], feature[0, 0, 6, 6] = 9000.0, -700.0
    decoded = codec.decode(codec.encode([feature], 0), [feature.shape], 0)[0]
    assert np.abs(decoded - feature).max() <= 0.1
    feature[0, 0, 0, 0] = 2 * MAX_SYMBOL * 0.1
    with pytest.raises(CodecError, match="magnitude"):
        codec.encode([feature], 0)


def test_the_same_calibration_gives_the_same_tables() -> None:
    values = laplace(30, 10)
    assert fit_transform_tables(values, (0.1, 0.2)) == fit_transform_tables(values.copy(), [0.1, 0.2])


def test_components_of_nothing_but_zeros_can_be_fitted() -> None:
    codec = codec_of(fit_transform_tables(np.zeros((3, 4, 2), np.float32), (0.1, 0.2)), (4, 2), 2)
    feature = np.zeros((1, 4, 2), np.float32)
    payload = codec.encode([feature], 0)
    assert len(payload) <= 2 and not codec.decode(payload, [feature.shape], 0)[0].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": ()},
        {"steps": (0.2, 0.1)},
        {"steps": (0.0, 0.1)},
        {"steps": (0.1,), "kept": (9,)},
        {"steps": (0.1,), "kept": (1, 2)},
        {"steps": (0.1,), "rounding": 0.6},
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict) -> None:
    with pytest.raises(CodecError):
        codec_of(fit_transform_tables(laplace(3, 4), **arguments), (4, 7, 7), 1)
    with pytest.raises(CodecError):
        fit_transform_tables(np.full((2, 3), np.nan), (0.1,))


def test_positions_must_be_those_of_the_tables_where_each_has_its_own(planes: Case) -> None:
    codec = codec_of(fit_transform_tables(laplace(9, 4), (0.1,), per_position=True), (4, "h", "w"), 1)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="components"):
        codec.encode([np.zeros((1, 4, 7, 6), np.float32)], 0)
    with pytest.raises(CodecError, match="components"):
        codec.decode(b"", [(1, 4, 6, 7)], 0)


def test_activity_that_channels_share_saves_bytes() -> None:
    """Places differ in scale, as those of pictures do; the blocks before tell a place's own."""
    generator = np.random.default_rng(9)

    def draw(samples: int) -> np.ndarray:
        busy = np.exp(generator.normal(size=(samples, 1, 3, 3)).repeat(3, 2).repeat(3, 3))
        return (laplace(samples, 32, int(generator.integers(1000)), (9, 9)) * busy).astype(np.float32)

    calibration, feature = draw(200), draw(20)
    tables = fit_transform_tables(calibration, (0.5,))
    settings, arrays = read_tables(tables, "transform")
    static = np.repeat(arrays["choices"][:, -1:], arrays["choices"].shape[1], axis=1)
    without = codec_of(write_tables("transform", settings, arrays | {"choices": static}), (32, 9, 9), 1)
    assert len(codec_of(tables, (32, 9, 9), 1).encode([feature], 0)) < 0.93 * len(without.encode([feature], 0))


@pytest.mark.parametrize("places", [(), (1,), (5,), (3, 4), (1, 6)])
def test_activity_is_smoothed_with_repeated_edges(places: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 9, (2, math.prod(places)))
    expected = values.reshape(2, *places)
    for axis in range(1, len(places) + 1):
        padded = np.pad(expected, [(1, 1) if at == axis else (0, 0) for at in range(expected.ndim)], mode="edge")
        size = expected.shape[axis]
        parts = [padded.take(range(at, at + size), axis) * weight for at, weight in enumerate((1, 2, 1))]
        expected = sum(parts)
    assert (smoothed(values, places) == expected.reshape(values.shape)).all()
