"""Traces in CSV files, and a trace from whatever a user calls it: a file, a name, or a link as text."""

from __future__ import annotations

import csv
import difflib
import io
from pathlib import Path

from edgekit.errors import DataError, EdgekitError, OutputError, UnknownNameError
from edgekit.planning.named_traces import TRACES, trace_named
from edgekit.planning.traces import Conditions, Trace

__all__ = ["Conditions", "Trace", "open_trace", "read_trace", "trace_named", "write_trace"]

COLUMNS = ("time_s", "bandwidth_mbps", "rtt_ms", "jitter_ms", "loss", "up")
OPTIONAL = ("jitter_ms", "loss", "up")
MAX_BYTES = 32 << 20
_UP = {"1": True, "true": True, "0": False, "false": False}


def open_trace(reference: str | Path, seed: int = 0) -> Trace:
    """A CSV file, or one of the named traces. Raises DataError for a file that does not fit, UnknownNameError."""
    text = str(reference)
    path = Path(text)
    if text in TRACES:
        return trace_named(text, seed)
    if path.suffix.lower() == ".csv" or path.is_file():
        return read_trace(path)
    raise UnknownNameError("trace", text, TRACES)


def read_trace(path: Path) -> Trace:
    """A header of `COLUMNS` in any order (`OPTIONAL` ones may be absent), then a row where each piece begins.

    A last row with nothing but a time ends the trace; without one the last piece lasts as long as the one before it
    (1 s where it is the only one). Raises DataError with the line.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_BYTES:
            raise DataError(f"{path} holds {size_bytes} bytes, allowed {MAX_BYTES}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the trace {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the trace {path} is not text: {error.reason}") from error
    return parse_trace(text, path.stem, str(path))


def parse_trace(text: str, name: str, origin: str) -> Trace:
    """`read_trace` on text; `origin` is what errors call it."""
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise DataError(f"{origin} is not CSV: {error}") from error
    rows = [[cell.strip() for cell in row] for row in rows]
    columns = _columns(rows[0] if rows else [], origin)
    time_s: list[float] = []
    pieces: list[Conditions] = []
    end: float | None = None
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        where = f"{origin}, line {number}"
        if end is not None:
            raise DataError(f"{where}: a row after the one that ends the trace")
        if len(row) != len(columns):
            raise DataError(f"{where}: {len(row)} fields, allowed {len(columns)}")
        cells = dict(zip(columns, row, strict=True))
        start = _number(cells.pop("time_s"), "time_s", where)
        if (time_s and start <= time_s[-1]) or (not time_s and start != 0):
            raise DataError(f"{where}: time_s {start:g}, allowed 0 on the first row and more on each later one")
        if any(cells.values()):
            time_s.append(start)
            pieces.append(_conditions(cells, where))
        else:
            end = start
    if not pieces:
        raise DataError(f"the trace {origin} has no rows", hint="`edgekit link --write-trace lte -o lte.csv` shows one")
    if end is None:
        end = time_s[-1] + (time_s[-1] - time_s[-2] if len(time_s) > 1 else 1.0)
    return Trace(name, tuple(time_s), tuple(pieces), end)


def _columns(header: list[str], origin: str) -> list[str]:
    for column in header:
        if column not in COLUMNS:
            near = difflib.get_close_matches(column, COLUMNS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{origin} has the unknown column {column!r}", hint=f"{hint}known: {', '.join(COLUMNS)}")
    missing = [column for column in COLUMNS if column not in header and column not in OPTIONAL]
    if missing or len(set(header)) != len(header):
        what = f"lacks the columns {missing}" if missing else "repeats a column"
        raise DataError(f"{origin} {what}", hint=f"its first line is like: {','.join(COLUMNS)}")
    return header


def _conditions(cells: dict[str, str], where: str) -> Conditions:
    up = cells.pop("up", "1").lower()
    if up not in _UP:
        raise DataError(f"{where}: up {up!r}, allowed {sorted(_UP)}")
    values = {name: _number(text, name, where) for name, text in cells.items()}
    try:
        return Conditions(**values, up=_UP[up])
    except EdgekitError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error


def _number(text: str, column: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: {column} {text!r} is not a number") from None


def write_trace(trace: Trace, path: Path) -> None:
    """The CSV file that `read_trace` reads back to the same trace. Raises OutputError."""
    lines = [",".join(COLUMNS)]
    for start, piece in zip(trace.time_s, trace.pieces, strict=True):
        figures = (start, piece.bandwidth_mbps, piece.rtt_ms, piece.jitter_ms, piece.loss)
        lines.append(",".join([*(f"{figure!r}" for figure in figures), str(int(piece.up))]))
    lines.append(f"{trace.duration_s!r},,,,,")
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose a writable path") from error
