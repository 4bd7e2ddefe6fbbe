from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.entropy import (
    MAX_SYMBOL,
    PRECISION,
    TABLE_BITS,
    TABLE_TOTAL,
    FrequencyTables,
    integer_table,
)

RADII = (0, 1, 3, 20, 255)


def make_tables() -> FrequencyTables:
    rows = []
    for radius in RADII:
        values = np.abs(np.arange(-radius, radius + 1))
        rows.append(integer_table(np.append(np.exp(-values / (0.1 + radius / 3)), 1e-4)))
    return FrequencyTables(np.concatenate(rows).astype(np.uint16), np.array(RADII, np.uint8))


class ReferenceCoder:
    """A range coder over whole numbers without end: the interval is [low, low + width) / 2^(32 shifts + 64)."""

    def __init__(self) -> None:
        self.low, self.width, self.shifts = 0, (1 << 64) - 1, 0

    def put(self, start: int, weight: int, bits: int) -> None:
        """An event of `weight` / 2^bits that begins at `start`."""
        unit = self.width >> PRECISION
        self.low += unit * (start << PRECISION - bits)
        self.width = unit * (weight << PRECISION - bits)
        if self.width < 1 << 32:
            self.low, self.width, self.shifts = self.low << 32, self.width << 32, self.shifts + 1

    def end(self) -> bytes:
        """The shortest bytes that name a point of the interval when zeros follow."""
        size = 4 * self.shifts + 8
        for count in range(size + 1):
            unit = 1 << 8 * (size - count)
            point = -(-self.low // unit) * unit
            if point < self.low + self.width:
                return point.to_bytes(size, "big")[:count]
        raise AssertionError


def reference_encode(tables: FrequencyTables, symbols: np.ndarray, runs: list[tuple[int, int]]) -> bytes:
    coder, escapes, at = ReferenceCoder(), [], 0
    for table, count in runs:
        radius, row = int(tables.radii[table]), tables.row(table).tolist()
        for symbol in symbols[at : at + count].tolist():
            place = symbol + radius
            if abs(symbol) > radius:
                place = 2 * radius + 1
                escapes.append(2 * (abs(symbol) - radius - 1) + (symbol < 0) + 1)
            coder.put(sum(row[:place]), row[place], TABLE_BITS)
        at += count
    for value in escapes:
        coder.put(value.bit_length() - 1, 1, 5)
    for length in sorted({value.bit_length() for value in escapes}):
        for shift in range(0, length - 1, 16):
            width = min(16, length - 1 - shift)
            for value in (value for value in escapes if value.bit_length() == length):
                coder.put((value - (1 << length - 1)) >> shift & (1 << width) - 1, 1, width)
    return coder.end() if runs and at else b""


@st.composite
def messages(draw: st.DrawFn) -> tuple[np.ndarray, list[tuple[int, int]]]:
    runs, symbols = [], []
    for _ in range(draw(st.integers(0, 6))):
        table = draw(st.integers(0, len(RADII) - 1))
        near = st.integers(-RADII[table] - 2, RADII[table] + 2)
        part = draw(st.lists(near | st.integers(-MAX_SYMBOL, MAX_SYMBOL) if draw(st.booleans()) else near, max_size=20))
        runs.append((table, len(part)))
        symbols += part
    return np.array(symbols, np.int32), runs


@settings(max_examples=150, deadline=None, derandomize=True)
@given(message=messages())
def test_bytes_are_those_of_the_reference_and_come_back(message: tuple[np.ndarray, list[tuple[int, int]]]) -> None:
    symbols, runs = message
    tables = make_tables()
    payload = tables.encode(symbols, runs)
    assert payload == reference_encode(tables, symbols, runs)
    assert (tables.decode(payload, runs) == symbols).all()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(payload=st.binary(max_size=60), counts=st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_any_bytes_are_refused_or_are_what_their_symbols_encode_to(payload: bytes, counts: list[int]) -> None:
    tables, runs = make_tables(), list(enumerate(counts))
    try:
        symbols = tables.decode(payload, runs)
    except CodecError:
        return
    assert len(symbols) == sum(counts) and np.abs(symbols).max(initial=0) <= MAX_SYMBOL
    assert tables.encode(symbols, runs) == payload


def test_the_extreme_symbols_escape() -> None:
    tables = make_tables()
    for table in range(len(RADII)):
        symbols = np.array([MAX_SYMBOL, -MAX_SYMBOL, 0, RADII[table], RADII[table] + 1, -RADII[table] - 1], np.int32)
        runs = [(table, len(symbols))]
        assert (tables.decode(tables.encode(symbols, runs), runs) == symbols).all()


def test_bytes_stay_within_one_byte_of_what_the_tables_say() -> None:
    tables, generator = make_tables(), np.random.default_rng(0)
    overheads = []
    for _ in range(200):
        runs, parts = [], []
        for table, radius in enumerate(RADII):
            row = tables.row(table)[:-1]
            count = int(generator.integers(0, 60))
            parts.append(generator.choice(np.arange(-radius, radius + 1), count, p=row / row.sum()))
            runs.append((table, count))
        symbols = np.concatenate(parts).astype(np.int32)
        overheads.append(len(tables.encode(symbols, runs)) - tables.bits(symbols, runs) / 8)
    assert np.mean(overheads) < 0.6 and max(overheads) < 1.6


def test_a_long_message_costs_what_the_tables_say_within_a_thousandth() -> None:
    tables, generator = make_tables(), np.random.default_rng(1)
    row = tables.row(3)[:-1]
    symbols = generator.choice(np.arange(-20, 21), 100_000, p=row / row.sum()).astype(np.int32)
    ideal = tables.bits(symbols, [(3, 100_000)]) / 8
    assert ideal - 1 <= len(tables.encode(symbols, [(3, 100_000)])) <= 1.001 * ideal


@given(counts=st.lists(st.floats(0, 1e12) | st.just(0.0), min_size=1, max_size=600))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_integer_tables_have_their_total_and_no_zero(counts: list[float]) -> None:
    table = integer_table(np.array(counts))
    assert table.sum() == TABLE_TOTAL and table.min() >= 1
    order = np.argsort(counts, kind="stable")
    assert (np.diff(table[order]) >= -1).all(), "larger counts get larger shares, but for a remainder of one"


def test_tables_that_do_not_add_up_are_refused() -> None:
    for frequencies, radii in (([65535], [0]), ([65535, 0], [0]), ([65535, 2], [0]), ([1] * 4, [1]), ([], [])):
        with pytest.raises(CodecError):
            FrequencyTables(np.array(frequencies, np.uint16), np.array(radii, np.uint8))
