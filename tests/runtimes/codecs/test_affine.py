from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.affine import BITS, AffineCodec, fit_affine_tables
from edgekit.tensors import TensorSpec


def draw(samples: int, seed: int) -> np.ndarray:
    """Rectified channels of different scales, and one that is constant."""
    values = (
        np.random.default_rng(seed).normal(size=(samples, 6, 5, 4)) * np.array([1, 3, 9, 0.1, 0, 30])[:, None, None]
    )
    values[:, :3] = np.maximum(values[:, :3], 0)
    values[:, 4] = 2.5
    return values.astype(np.float32)


def make_codec() -> AffineCodec:
    return AffineCodec([TensorSpec("x", "float32", ("batch", 6, 5, 4))], 3, fit_affine_tables(draw(200, 0)))


@pytest.mark.parametrize("rate", range(len(BITS)))
def test_levels_are_those_of_the_reference(rate: int) -> None:
    codec, feature = make_codec(), draw(3, 1)
    decoded = codec.decode(codec.encode([feature], rate), [feature.shape], rate)[0]
    for sample, channel, row, column in np.ndindex(feature.shape):
        low, scale = codec.low[rate, channel], codec.scale[rate, channel]
        level = np.float32(round(float((feature[sample, channel, row, column] - low) / scale)))
        level = min(max(level, np.float32(0)), np.float32(2 ** BITS[rate] - 1))
        assert decoded[sample, channel, row, column] == level * scale + low


def test_eight_bits_are_within_half_a_scale_inside_the_calibrated_range() -> None:
    codec, feature = make_codec(), draw(200, 0)
    decoded = codec.decode(codec.encode([feature], 0), [feature.shape], 0)[0]
    error = np.abs(decoded - feature).max((0, 2, 3))
    assert np.median(np.abs(decoded - feature)) < codec.scale[0].max()
    assert (np.quantile(np.abs(decoded - feature), 0.999, axis=(0, 2, 3)) <= 0.501 * codec.scale[0] + 1e-6).all()
    assert error[4] < 1e-4, "a constant channel comes back"


def test_payloads_are_smaller_than_their_bits() -> None:
    codec, feature = make_codec(), draw(20, 2)
    for rate, bits in enumerate(BITS):
        assert len(codec.encode([feature], rate)) < feature.size * bits / 8


def test_values_outside_of_the_calibrated_range_saturate() -> None:
    codec, feature = make_codec(), np.full((1, 6, 5, 4), 1e30, np.float32)
    decoded = codec.decode(codec.encode([feature], 1), [feature.shape], 1)[0]
    assert (decoded == decoded[:, :, :1, :1]).all() and decoded.max() < 200


def test_calibration_that_says_nothing_is_refused() -> None:
    for samples in (np.zeros((0, 3)), np.full((4, 3), np.inf)):
        with pytest.raises(CodecError):
            fit_affine_tables(samples)
