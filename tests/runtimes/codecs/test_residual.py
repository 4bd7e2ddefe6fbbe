from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CodecError
from edgekit.registry import CODECS
from edgekit.runtimes.codecs.entropy import integer_table
from edgekit.runtimes.codecs.residual import LARGEST, FeatureCoder, ResidualCodec, ResidualTables
from edgekit.runtimes.codecs.tables import write_tables
from edgekit.tensors import TensorSpec

GROUPS, STAGES, COUNT, WIDTH = 3, 4, 8, 2
KEPT = (12, 9, 6, 3, 1)


def _tables(seed: int = 0, count: int = COUNT) -> ResidualTables:
    rng = np.random.default_rng(seed)
    scale = 4000 / 2.0 ** np.arange(STAGES)
    codewords = (rng.standard_normal((GROUPS, STAGES, count, WIDTH)) * scale[:, None, None]).astype(np.int16)
    frequencies = np.empty((GROUPS, STAGES, count), np.uint16)
    for group in range(GROUPS):
        for stage in range(STAGES):
            frequencies[group, stage] = integer_table(rng.integers(1, 50, count))
    units = np.array([(group, stage) for stage in range(STAGES) for group in range(GROUPS)], np.uint8)
    penalties = rng.integers(0, 20_000, (GROUPS, STAGES, count)).astype(np.uint32)
    return ResidualTables(codewords, penalties, frequencies, units, np.array(KEPT, np.uint16), 2.0**-12)


def _codec(tables: ResidualTables | None = None, features: int = 1) -> ResidualCodec:
    specs = [TensorSpec(f"feature{i}", "float32", ("batch", 5, GROUPS * WIDTH)) for i in range(features)]
    arrays: dict[str, np.ndarray] = {}
    for index in range(features):
        arrays |= (tables or _tables(index)).arrays(index)
    return CODECS.load("residual")(specs, len(KEPT), write_tables("residual", {}, arrays))


def _feature(batch: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 5, GROUPS * WIDTH)).astype(np.float32)


def _plain_indices(tables: ResidualTables, row: np.ndarray, kept: int) -> list[int]:
    """One row by Python integers, unit after unit."""
    rest = [max(-LARGEST, min(LARGEST, int(np.rint(np.float32(v) / np.float32(tables.step))))) for v in row]
    found = []
    for group, stage in tables.units[:kept].tolist():
        part = rest[group * WIDTH : (group + 1) * WIDTH]
        costs = []
        book = tables.codewords[group, stage].tolist()
        for codeword, penalty in zip(book, tables.penalties[group, stage].tolist(), strict=True):
            costs.append(sum((a - b) ** 2 for a, b in zip(part, codeword, strict=True)) + penalty)
        best = costs.index(min(costs))
        found.append(best)
        rest[group * WIDTH : (group + 1) * WIDTH] = [
            a - b for a, b in zip(part, tables.codewords[group, stage, best].tolist(), strict=True)
        ]
    return found


@pytest.mark.parametrize("rate", range(len(KEPT)))
def test_indices_are_those_of_plain_integers(rate):
    tables = _tables(3)
    rows = _feature(2, 4).reshape(10, -1)
    indices = FeatureCoder(tables).encode(rows, rate)
    assert indices.T.tolist() == [_plain_indices(tables, row, KEPT[rate]) for row in rows]


@pytest.mark.parametrize("count", [2, 3, 8, 17])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_decoding_gives_the_sums_of_codewords_at_every_rate(count, batch):
    tables = _tables(5, count)
    codec = _codec(tables)
    feature = _feature(batch)
    for rate, kept in enumerate(KEPT):
        payload = codec.encode([feature], rate)
        (decoded,) = codec.decode(payload, [feature.shape], rate)
        indices = FeatureCoder(tables).encode(feature.reshape(-1, GROUPS * WIDTH), rate)
        expected = np.zeros((len(indices[0]), GROUPS, WIDTH), np.int64)
        for (group, stage), chosen in zip(tables.units[:kept].tolist(), indices, strict=True):
            expected[:, group] += tables.codewords[group, stage][chosen]
        assert decoded.dtype == np.float32
        assert np.array_equal(decoded, (expected.reshape(feature.shape) * tables.step).astype(np.float32))


def test_finer_rates_are_nearer_and_longer_and_begin_with_the_coarser_ones_indices():
    tables = dataclasses.replace(_tables(), penalties=np.zeros((GROUPS, STAGES, COUNT), np.uint32))
    codec, coder, feature = _codec(tables), FeatureCoder(tables), _feature(40)
    sizes, errors = [], []
    for rate in range(len(KEPT)):
        payload = codec.encode([feature], rate)
        sizes.append(len(payload))
        errors.append(float(np.square(codec.decode(payload, [feature.shape], rate)[0] - feature).sum()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    rows = feature.reshape(200, -1)
    assert np.array_equal(coder.encode(rows, 0)[: KEPT[-2]], coder.encode(rows, len(KEPT) - 2))


def test_two_features_share_a_payload():
    codec = _codec(features=2)
    features = [_feature(2, 6), _feature(2, 7)]
    decoded = codec.decode(codec.encode(features, 1), [f.shape for f in features], 1)
    for one, alone in zip(decoded, features, strict=True):
        assert np.abs(one - alone).mean() < np.abs(alone).mean()
    assert not np.array_equal(decoded[0], decoded[1])


def test_extremes_are_clipped_and_nan_is_refused():
    codec = _codec()
    feature = _feature(1)
    feature[0, 0, :2] = 1e30, -1e30
    (decoded,) = codec.decode(codec.encode([feature]), [feature.shape])
    assert np.isfinite(decoded).all()
    feature[0, 1, 1] = np.nan
    with pytest.raises(CodecError, match="NaN"):
        codec.encode([feature])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(KEPT) - 1))
def test_any_bytes_decode_to_what_encodes_them_or_are_refused(payload, rate):
    codec = _codec()
    try:
        (decoded,) = codec.decode(payload, [(1, 5, GROUPS * WIDTH)], rate)
    except CodecError:
        return
    assert decoded.shape == (1, 5, GROUPS * WIDTH)
    (found,) = codec.decode_indices(payload, [5], rate)
    assert found.shape == (KEPT[rate], 5)
    assert 0 <= found.min() <= found.max() < COUNT


def test_lengthened_payloads_are_refused():
    codec, feature = _codec(), _feature(3)
    payload = codec.encode([feature])
    for damaged in (payload + b"\0", payload + b"\1" * 9, payload + bytes(5000)):
        with pytest.raises(CodecError):
            codec.decode(damaged, [feature.shape])


def test_places_without_bound_are_refused_before_memory_is_taken():
    with pytest.raises(CodecError):
        _codec().decode(b"", [(1 << 19, 5, GROUPS * WIDTH)])


@pytest.mark.parametrize(
    "change",
    [
        {"step": 0.0},
        {"step": -1.0},
        {"kept": np.array([12, 9, 6, 3, 0], np.uint16)},
        {"kept": np.array([13, 9, 6, 3, 1], np.uint16)},
        {"kept": np.array([1, 3, 6, 9, 12], np.uint16)},
        {"kept": np.array([12, 9], np.uint16)},
        {"frequencies": np.ones((GROUPS, STAGES, COUNT), np.uint16)},
        {"units": np.zeros((GROUPS * STAGES, 2), np.uint8)},
        {"units": np.full((GROUPS * STAGES, 2), 9, np.uint8)},
        {"codewords": np.full((GROUPS, STAGES, COUNT, WIDTH), -(1 << 15), np.int16)},
        {"codewords": np.zeros((GROUPS, STAGES, 1, WIDTH), np.int16)},
        {"codewords": np.zeros((GROUPS, STAGES, COUNT, WIDTH + 1), np.int16)},
        {"penalties": np.zeros((GROUPS, STAGES, COUNT + 1), np.uint32)},
    ],
)
def test_tables_that_do_not_fit_are_refused(change):
    with pytest.raises(CodecError):
        _codec(dataclasses.replace(_tables(), **change))
