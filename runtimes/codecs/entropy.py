"""Entropy coding of integers with integer tables: the same bytes on every processor.

A table of radius m knows the symbols -m .. m and an escape. What escapes follows at the end: the bit length of
2 (|s| - m - 1) + (s < 0) + 1 evenly from 1 to 32, then the bits below its first (Elias' gamma code, 1975).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.range_coder import PRECISION, ending, exact_model, new_encoder, open_decoder

TABLE_BITS = 16
TABLE_TOTAL = 1 << TABLE_BITS
MAX_RADIUS = 255
MAX_SYMBOL = (1 << 20) - 1
_CHUNK_BITS = 16

Run = tuple[int, int]  # table, number of symbols


def _even(bits: int) -> Any:
    """2^bits symbols of the same weight."""
    return exact_model(np.full(1 << bits, 1 << (PRECISION - bits)))


_EVEN = {5: _even(5)}


class FrequencyTables:
    """`frequencies`: uint16 [sum of 2 m_t + 2], table by table: -m_t .. m_t, escape; each >= 1, each table's sum 2^16.

    `radii`: uint8 [tables], the m_t.
    """

    def __init__(self, frequencies: np.ndarray, radii: np.ndarray) -> None:
        """Raises CodecError for tables that do not fit."""
        self.radii = radii.astype(np.int64)
        self.ends = np.cumsum(2 * self.radii + 2)
        if len(radii) == 0 or len(frequencies) != self.ends[-1]:
            raise CodecError(f"{len(frequencies)} frequencies, allowed {self.ends[-1] if len(radii) else 'some'}")
        self.frequencies = frequencies.astype(np.int64)
        sums = np.add.reduceat(self.frequencies, np.concatenate([[0], self.ends[:-1]]))
        if (self.frequencies < 1).any() or (sums != TABLE_TOTAL).any():
            raise CodecError(f"frequencies below 1 or with a sum other than {TABLE_TOTAL}")
        self._models: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.radii)

    def row(self, table: int) -> np.ndarray:
        """int64 [2 m + 2]: frequencies of -m .. m and escape."""
        end = self.ends[table]
        return self.frequencies[end - 2 * self.radii[table] - 2 : end]

    def model(self, table: int) -> Any:
        model = self._models.get(table)
        if model is None:
            model = self._models[table] = exact_model(self.row(table) << (PRECISION - TABLE_BITS))
        return model

    def encode(self, symbols: np.ndarray, runs: Sequence[Run]) -> bytes:
        """`symbols` int32 [n], |s| <= MAX_SYMBOL, in runs of one table each. Raises CodecError."""
        return encode_runs(np.ascontiguousarray(symbols, np.int32), self.model_runs(runs))

    def decode(self, payload: bytes, runs: Sequence[Run]) -> np.ndarray:
        """int32 [sum of counts]. Raises CodecError for bytes that `encode` does not write."""
        return decode_runs(payload, self.model_runs(runs))

    def model_runs(self, runs: Sequence[Run]) -> ModelRuns:
        tables = [table for table, _ in runs]
        counts = np.array([count for _, count in runs], np.int64)
        return ModelRuns([self.model(table) for table in tables], self.radii[tables], counts)

    def bits(self, symbols: np.ndarray, runs: Sequence[Run]) -> float:
        """What the tables say that these symbols cost, escapes and the coder's own ending included not."""
        total, start = 0.0, 0
        for table, count in runs:
            radius, row = int(self.radii[table]), self.row(table)
            part = symbols[start : start + count].astype(np.int64)
            index = np.where(abs(part) <= radius, part + radius, 2 * radius + 1)
            total += float((TABLE_BITS - np.log2(row[index])).sum())
            start += count
        return total


@dataclass(frozen=True)
class ModelRuns:
    """Runs of symbols: run i has `counts[i]` of them, from -radius to radius or escaping, under `models[i]`."""

    models: Sequence[Any]
    radii: np.ndarray
    counts: np.ndarray

    def spread_radii(self) -> np.ndarray:
        """int32: the radius of each symbol."""
        return np.repeat(self.radii.astype(np.int32), self.counts)


def encode_runs(symbols: np.ndarray, runs: ModelRuns) -> bytes:
    """int32 [sum of counts] -> bytes. |symbol| <= MAX_SYMBOL."""
    encoder = new_encoder()
    radii = runs.spread_radii()
    index = symbols + radii
    outside = index.view(np.uint32) > 2 * radii.view(np.uint32)
    escaped = np.flatnonzero(outside)
    if len(escaped):
        index[escaped] = 2 * radii[escaped] + 1
    _encode_indices(encoder, index, runs)
    if len(escaped):
        values = symbols[escaped].astype(np.int64)
        _encode_escapes(encoder, (abs(values) - radii[escaped] - 1) * 2 + (values < 0) + 1)
    return ending(encoder)


def decode_runs(payload: bytes, runs: ModelRuns) -> np.ndarray:
    """The reverse. A payload is what `encode_runs` writes for the symbols found in it, or CodecError is raised."""
    try:
        decoder = open_decoder(payload)
        index = _decode_indices(decoder, runs)
        symbols = _with_escapes(decoder, index, runs.spread_radii())
    except (AssertionError, ValueError) as error:
        raise CodecError(f"{len(payload)} bytes that no encoder wrote: {error}") from error
    # A range coder decodes any bytes to something: coding that again is the cheapest complete check.
    if encode_runs(symbols, runs) != payload:
        raise CodecError(f"{len(payload)} bytes that no encoder wrote")
    return symbols


class RunDecoder:
    """`FrequencyTables.decode` a few runs at a time, where what was found chooses the next tables."""

    def __init__(self, tables: FrequencyTables, payload: bytes) -> None:
        self._tables, self._payload, self._decoder = tables, payload, open_decoder(payload)
        self._runs: list[Run] = []
        self._parts: list[np.ndarray] = []

    def take(self, runs: Sequence[Run]) -> np.ndarray:
        """Magnitudes int64 of the next runs, the radius + 1 for what escapes. Raises CodecError."""
        models = self._tables.model_runs(runs)
        try:
            index = _decode_indices(self._decoder, models)
        except (AssertionError, ValueError) as error:
            raise CodecError(f"{len(self._payload)} bytes that no encoder wrote: {error}") from error
        self._runs += runs
        self._parts.append(index)
        magnitudes: np.ndarray = np.abs(index.astype(np.int64) - models.spread_radii())
        return magnitudes

    def finish(self) -> np.ndarray:
        """All symbols, int32. Raises CodecError."""
        models = self._tables.model_runs(self._runs)
        index = np.concatenate(self._parts) if self._parts else np.empty(0, np.int32)
        try:
            symbols = _with_escapes(self._decoder, index, models.spread_radii())
        except (AssertionError, ValueError) as error:
            raise CodecError(f"{len(self._payload)} bytes that no encoder wrote: {error}") from error
        if encode_runs(symbols, models) != self._payload:
            raise CodecError(f"{len(self._payload)} bytes that no encoder wrote")
        return symbols


def _with_escapes(decoder: Any, index: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Symbols from what their models gave; what escaped is read from behind."""
    escaped = np.flatnonzero(index == 2 * radii + 1)
    symbols: np.ndarray = index - radii
    if len(escaped):
        values = _decode_escapes(decoder, len(escaped)) - 1
        magnitudes = values // 2 + radii[escaped] + 1
        if magnitudes.max() > MAX_SYMBOL:
            raise CodecError(f"a symbol of {magnitudes.max()}, allowed {MAX_SYMBOL}")
        symbols[escaped] = np.where(values % 2, -magnitudes, magnitudes)
    return symbols


def encode_indices(indices: np.ndarray, models: Sequence[Any], counts: np.ndarray) -> bytes:
    """int32 [sum of counts], each below its model's number of symbols; nothing escapes."""
    encoder = new_encoder()
    _encode_indices(encoder, np.ascontiguousarray(indices, np.int32), ModelRuns(models, counts, counts))
    return ending(encoder)


def decode_indices(payload: bytes, models: Sequence[Any], counts: np.ndarray) -> np.ndarray:
    """The reverse, as strict as `decode_runs`."""
    try:
        indices = _decode_indices(open_decoder(payload), ModelRuns(models, counts, counts))
    except (AssertionError, ValueError) as error:
        raise CodecError(f"{len(payload)} bytes that no encoder wrote: {error}") from error
    if encode_indices(indices, models, counts) != payload:
        raise CodecError(f"{len(payload)} bytes that no encoder wrote")
    return indices


def _encode_indices(encoder: Any, index: np.ndarray, runs: ModelRuns) -> None:
    start = 0
    for model, count in zip(runs.models, runs.counts.tolist(), strict=True):
        if count:
            encoder.encode(index[start : start + count], model)
            start += count


def _decode_indices(decoder: Any, runs: ModelRuns) -> np.ndarray:
    parts = [decoder.decode(model, n) for model, n in zip(runs.models, runs.counts.tolist(), strict=True) if n]
    indices: np.ndarray = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return indices


def _encode_escapes(encoder: Any, values: np.ndarray) -> None:
    """`values` int64 >= 1."""
    lengths = np.frexp(values.astype(np.float64))[1]
    encoder.encode((lengths - 1).astype(np.int32), _EVEN[5])
    for length in np.unique(lengths):
        low = values[lengths == length] - (1 << int(length - 1))
        for shift, model in _chunks(int(length) - 1):
            encoder.encode(((low >> shift) & 0xFFFF).astype(np.int32), model)


def _decode_escapes(decoder: Any, count: int) -> np.ndarray:
    lengths = decoder.decode(_EVEN[5], count).astype(np.int64) + 1
    values: np.ndarray = np.left_shift(np.int64(1), lengths - 1)
    for length in np.unique(lengths):
        where = np.flatnonzero(lengths == length)
        for shift, model in _chunks(int(length) - 1):
            values[where] += decoder.decode(model, len(where)).astype(np.int64) << shift
    return values


def _chunks(bits: int) -> list[tuple[int, Any]]:
    """Shifts and models that cover `bits` low bits, 16 at a time."""
    chunks = []
    for shift in range(0, bits, _CHUNK_BITS):
        width = min(_CHUNK_BITS, bits - shift)
        if width not in _EVEN:
            _EVEN[width] = _even(width)
        chunks.append((shift, _EVEN[width]))
    return chunks


def integer_table(counts: np.ndarray, total: int = TABLE_TOTAL) -> np.ndarray:
    """int64 [n] of sum `total`, each >= 1, proportional to `counts` [n >= 1, n <= total] by largest remainder."""
    counts = np.maximum(np.asarray(counts, np.float64), 0)
    weight = counts.sum()
    shares = (counts / weight if weight > 0 else np.full(len(counts), 1 / len(counts))) * (total - len(counts))
    table: np.ndarray = np.floor(shares).astype(np.int64)
    missing = total - len(counts) - int(table.sum())
    order = np.argsort(-(shares - table), kind="stable")
    table[order[:missing]] += 1
    table += 1
    return table
