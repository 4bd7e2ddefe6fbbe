"""What every codec obeys, by one matrix."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import CodecError

if TYPE_CHECKING:
    from conftest import Case

FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def shapes(arrays: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [array.shape for array in arrays]


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_every_rate_comes_back_in_shape_dtype_and_bounds(case: Case, batch: int) -> None:
    codec, arrays = case.codec(), case.draw(batch, 1)
    for rate, bound in enumerate(case.errors):
        decoded = codec.decode(codec.encode(arrays, rate), shapes(arrays), rate)
        for before, after in zip(arrays, decoded, strict=True):
            assert after.shape == before.shape and after.dtype == before.dtype
            if bound is not None and before.dtype.kind == "f":
                assert np.abs(after - before).max(initial=0) <= bound
            elif before.dtype.kind != "f":
                assert (after == before).all()


def test_the_same_features_give_the_same_bytes(case: Case) -> None:
    arrays = case.draw(2, 5)
    assert case.codec().encode(arrays, 0) == case.codec().encode([array.copy() for array in arrays], 0)


def test_bytes_fall_along_the_ladder(case: Case) -> None:
    codec, arrays = case.codec(), case.draw(4, 2)
    sizes = [len(codec.encode(arrays, rate)) for rate in range(codec.rates)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_finer_rates_are_closer(case: Case) -> None:
    codec, arrays = case.codec(), case.draw(8, 3)
    errors = []
    for rate in range(codec.rates):
        decoded = codec.decode(codec.encode(arrays, rate), shapes(arrays), rate)
        errors.append(float(np.square(decoded[0] - arrays[0]).mean()))
    assert errors == sorted(errors)


def test_layout_in_memory_does_not_matter(case: Case) -> None:
    codec, arrays = case.codec(), case.draw(3, 4)
    assert codec.encode([np.asfortranarray(array) for array in arrays], 0) == codec.encode(arrays, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(case: Case, value: float) -> None:
    codec, arrays = case.codec(), case.draw(1, 6)
    arrays[0].flat[-1] = value
    for rate in range(codec.rates):
        with pytest.raises(CodecError):
            codec.encode(arrays, rate)


def test_rates_off_the_ladder_are_refused(case: Case) -> None:
    codec, arrays = case.codec(), case.draw(1, 0)
    for rate in (-1, codec.rates):
        with pytest.raises(CodecError, match=f"rate {rate}, allowed 0 to {codec.rates - 1}"):
            codec.encode(arrays, rate)
        with pytest.raises(CodecError):
            codec.decode(b"", shapes(arrays), rate)


def test_other_shapes_and_dtypes_are_refused(case: Case) -> None:
    codec, arrays = case.codec(), case.draw(2, 0)
    payload = codec.encode(arrays, 0)
    wrong = [arrays[0].astype(np.float64), *arrays[1:]]
    for features in (wrong, arrays[:-1], [arrays[0][..., :-1], *arrays[1:]]):
        with pytest.raises(CodecError):
            codec.encode(features, 0)
    shape = arrays[0].shape
    for other in ((-2, *shape[1:]), (1 << 30, *shape[1:]), shape[:-1], (*shape[:-1], shape[-1] + 1)):
        with pytest.raises(CodecError):
            codec.decode(payload, [other, *shapes(arrays)[1:]], 0)
    with pytest.raises(CodecError):
        codec.decode(payload, shapes(arrays)[:-1], 0)


def test_truncated_and_extended_payloads_are_never_taken_for_the_whole(case: Case) -> None:
    """A part of an entropy-coded payload may be another payload; what it says is then something else."""
    codec, arrays = case.codec(), case.draw(2, 7)
    payload = codec.encode(arrays, 0)
    whole = codec.decode(payload, shapes(arrays), 0)
    for damaged in (b"", payload[:-2], payload[: len(payload) // 2], payload + b"\1"):
        with contextlib.suppress(CodecError):
            decoded = codec.decode(damaged, shapes(arrays), 0)
            assert any((got != was).any() for got, was in zip(decoded, whole, strict=True))
    with pytest.raises(CodecError):
        codec.decode(payload + b"\0", shapes(arrays), 0)


@FUZZ
@given(data=st.data())
def test_hostile_payloads_end_in_codec_errors(case: Case, data: st.DataObject) -> None:
    """Or in features of the right shape: a flipped bit may be another payload, and the frame's checksum finds it."""
    codec, arrays = case.codec(), case.draw(2, 8)
    rate = data.draw(st.integers(0, codec.rates - 1))
    payload = bytearray(codec.encode(arrays, rate))
    if payload and data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 4))):
            payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        payload = bytearray(data.draw(st.binary(max_size=300)))
    try:
        decoded = codec.decode(bytes(payload), shapes(arrays), rate)
    except CodecError:
        return
    assert shapes(decoded) == shapes(arrays)
    if case.kind != "image":
        assert all(np.isfinite(array).all() for array in decoded)


@FUZZ
@given(data=st.data())
def test_hostile_tables_end_in_codec_errors(case: Case, data: st.DataObject) -> None:
    if case.tables is None:
        return
    tables = bytearray(case.tables)
    for _ in range(data.draw(st.integers(1, 3))):
        tables[data.draw(st.integers(0, len(tables) - 1))] = data.draw(st.integers(0, 255))
    changed = type(case)(case.name, case.kind, case.specs, bytes(tables), case.draw, case.errors)
    try:
        codec = changed.codec()
        arrays = case.draw(1, 9)
        codec.decode(codec.encode(arrays, 0), shapes(arrays), 0)
    except CodecError:
        pass


def test_a_ladder_may_end_before_its_tables(case: Case) -> None:
    short = type(case)(case.name, case.kind, case.specs, case.tables, case.draw, case.errors[:1])
    arrays = case.draw(1, 10)
    assert short.codec().encode(arrays, 0) == case.codec().encode(arrays, 0)


def test_tables_of_another_kind_or_missing_are_refused(case: Case) -> None:
    other = type(case)(
        case.name, case.kind, case.specs, b"EKTB" if case.tables is None else None, case.draw, case.errors
    )
    with pytest.raises(CodecError, match="allowed"):
        other.codec()
