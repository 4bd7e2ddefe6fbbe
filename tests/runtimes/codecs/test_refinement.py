from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.refinement import decode_refinement, encode_refinement
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.tensors import TensorSpec

CHANNELS = 16


def draw(samples: int, seed: int) -> np.ndarray:
    fade = np.exp(-np.arange(CHANNELS) / 5)[:, None, None]
    return (np.random.default_rng(seed).laplace(size=(samples, CHANNELS, 7, 5)) * fade).astype(np.float32)


@cache
def make_codec(
    ratio: float, rates: int = 4, rounding: float = 0.5, kept: tuple[int, ...] | None = None
) -> TransformCodec:
    steps = [0.05 * ratio**k for k in range(rates)]
    tables = fit_transform_tables(draw(300, 0), steps, rounding=rounding, kept=kept)
    return TransformCodec([TensorSpec("feature", "float32", ("batch", CHANNELS, 7, 5))], 4, tables)


@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0, 4.9])
@pytest.mark.parametrize("rounding", [0.5, 0.33])
def test_refining_any_rate_gives_the_finer_one_bit_for_bit(ratio: float, rounding: float) -> None:
    codec, feature = make_codec(ratio, rounding=rounding), draw(2, 1)
    feature[0, 0, 0, 0], feature[1, 15, 6, 4] = 300, -77.77
    for fine, coarse in combinations(range(4), 2):
        sent = codec.encode([feature], coarse)
        more = encode_refinement(codec, [feature], coarse, fine)
        decoded = decode_refinement(codec, sent, more, [feature.shape], coarse, fine)[0]
        assert (decoded == codec.decode(codec.encode([feature], fine), [feature.shape], fine)[0]).all()


def test_steps_apart_by_three_refine_at_next_to_no_cost() -> None:
    """What it costs is how far the shared tables of both rates are from each other: 5 %."""
    codec, feature = make_codec(3.0), draw(8, 2)
    for fine, coarse in combinations(range(4), 2):
        both = len(codec.encode([feature], coarse)) + len(encode_refinement(codec, [feature], coarse, fine))
        assert both <= 1.05 * len(codec.encode([feature], fine))


def test_a_refinement_adds_the_channels_that_the_coarse_rate_dropped() -> None:
    codec, feature = make_codec(3.0, kept=(16, 16, 9, 4)), draw(2, 3)
    more = encode_refinement(codec, [feature], 3, 1)
    decoded = decode_refinement(codec, codec.encode([feature], 3), more, [feature.shape], 3, 1)[0]
    assert (decoded == codec.decode(codec.encode([feature], 1), [feature.shape], 1)[0]).all()


def test_values_on_the_edges_of_bins_refine() -> None:
    codec = make_codec(3.0)
    edges = (np.arange(2 * CHANNELS * 35, dtype=np.float32).reshape(2, CHANNELS, 7, 5) - 500) * np.float32(0.025)
    for fine, coarse in combinations(range(4), 2):
        more = encode_refinement(codec, [edges], coarse, fine)
        decoded = decode_refinement(codec, codec.encode([edges], coarse), more, [edges.shape], coarse, fine)[0]
        assert (decoded == codec.decode(codec.encode([edges], fine), [edges.shape], fine)[0]).all()


def test_only_coarser_rates_on_the_ladder_are_refined() -> None:
    codec, feature = make_codec(3.0), draw(1, 4)
    for coarse, fine in ((1, 1), (0, 1), (4, 0), (1, -1)):
        with pytest.raises(CodecError):
            encode_refinement(codec, [feature], coarse, fine)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(payload=st.binary(max_size=200), coarse=st.binary(max_size=60))
def test_hostile_refinements_end_in_codec_errors(payload: bytes, coarse: bytes) -> None:
    codec, feature = make_codec(3.0), draw(1, 5)
    for sent in (coarse, codec.encode([feature], 2)):
        try:
            decoded = decode_refinement(codec, sent, payload, [feature.shape], 2, 0)[0]
        except CodecError:
            continue
        assert decoded.shape == feature.shape and np.isfinite(decoded).all()


def test_an_empty_batch_refines_to_an_empty_batch() -> None:
    codec, feature = make_codec(3.0), draw(0, 6)
    more = encode_refinement(codec, [feature], 1, 0)
    assert decode_refinement(codec, b"", more, [feature.shape], 1, 0)[0].shape == feature.shape
