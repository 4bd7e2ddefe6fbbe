"""Span files of all tiers, read: one JSON object a line, what is damaged counted and left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import DataError
from edgekit.runtimes.tracing.span import Span

# What a folder is searched for, without its subfolders.
PATTERN = "*.jsonl"

# No span is longer; what is, is not read into memory as one.
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """`damaged`: lines that are no span. A last line without its end is still being written, and is not one of them.
    `files`: those that held a span."""

    spans: tuple[Span, ...] = ()
    damaged: int = 0
    files: tuple[Path, ...] = ()

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.spans + other.spans, self.damaged + other.damaged, self.files + other.files)


def read_files(paths: Iterable[Path]) -> Reading:
    """Files, and the `*.jsonl` of folders; of the latter those that hold JSON but no span belong to somebody else.

    Raises DataError for a path that is not there or cannot be read."""
    found = Reading()
    for path in paths:
        if path.is_dir():
            for entry in sorted(path.glob(PATTERN)):
                one = read_file(entry)
                found += Reading() if not one.spans and _begins_with_json(entry) else one
        else:
            found += read_file(path)
    return found


def _begins_with_json(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            json.loads(stream.readline(MAX_LINE_BYTES))
        except (ValueError, RecursionError):
            return False
    return True


def read_file(path: Path) -> Reading:
    """Raises DataError."""
    spans: list[Span] = []
    damaged, is_too_long = 0, False
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                is_whole = line.endswith(b"\n")
                if is_too_long or (not is_whole and len(line) == MAX_LINE_BYTES):
                    damaged += is_whole
                    is_too_long = not is_whole
                    continue
                try:
                    spans.append(Span.model_validate_json(line))
                except ValidationError:
                    damaged += is_whole and bool(line.strip())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}",
            hint="--from takes the files that `edgekit run --trace FILE` and `edgekit serve --trace FILE` write",
        ) from error
    return Reading(tuple(spans), damaged, (path,) if spans else ())


def read_objects(objects: Sequence[object]) -> Reading:
    """Spans as a node gives them."""
    spans: list[Span] = []
    for entry in objects:
        try:
            spans.append(Span.model_validate(entry))
        except ValidationError:
            continue
    return Reading(tuple(spans), len(objects) - len(spans))
