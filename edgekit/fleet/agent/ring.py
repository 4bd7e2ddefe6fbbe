"""Windows that the fleet does not have yet, on the disk, bounded: the oldest are let go and counted.

windows/<first sequence>.log    up to 64 windows, a line each: crc32, a space, {"window": {...}, "spool": [...],
                                "taken": n}; n is up to which sequence the fleet had them by then
                                the first line is {"dropped": n}: windows that were let go before they were taken

A line counts once it is whole; what a power cut tore off is cut away at the next start. A window is offered to the
fleet only after it is on the disk, so that no sequence number is ever given twice; the newest file stays for the same
reason, also when all of it was taken, and one that nothing came into yet counts by its name.
"""

from __future__ import annotations

import json
import logging
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit.fleet.agent.disk import output_error
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.windows import Window

logger = logging.getLogger("edgekit")

MOST_WINDOWS, MOST_BYTES = 4096, 8 << 20
SEGMENT_WINDOWS, SEGMENT_BYTES = 64, 256 << 10


@dataclass
class _Segment:
    path: Path
    size: int = 0
    first: int = 0  # sequence that its name tells
    sequences: list[int] = field(default_factory=list)


class Ring:
    """Safe from several threads. `most_windows` and `most_bytes` bound what lies on the disk, give or take a file."""

    def __init__(self, home: Home, most_windows: int = MOST_WINDOWS, most_bytes: int = MOST_BYTES) -> None:
        self._home, self._disk = home, home.disk
        self._most_windows, self._most_bytes = most_windows, most_bytes
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._taken = -1
        self.dropped = 0
        self.consumed: set[str] = set()  # spool files that a window holds already
        for path in sorted(home.windows.glob("*.log")) if home.windows.is_dir() else []:
            self._read(path)

    def _read(self, path: Path) -> None:
        segment = _Segment(path, first=int(path.stem) if path.stem.isdecimal() else 0)
        for line in _lines(path):
            segment.size += line.size
            if "dropped" in line.content:
                self.dropped = max(self.dropped, int(line.content["dropped"]))
            elif line.window is not None:
                segment.sequences.append(line.window.sequence)
                self.consumed |= set(line.content.get("spool", ()))
                self._taken = max(self._taken, int(line.content.get("taken", -1)))
        self._segments.append(segment)

    @property
    def next_sequence(self) -> int:
        last = [segment.sequences[-1] if segment.sequences else segment.first - 1 for segment in self._segments]
        return max([*last, self._taken]) + 1

    def append(self, window: Window, spool: Sequence[str] = ()) -> Window:
        """Numbered, and on the disk after this. Raises OutputError, and then it is not here."""
        with self._lock:
            window = window.model_copy(update={"sequence": self.next_sequence})
            told = window.model_dump(mode="json", exclude_defaults=True)
            line = _line({"window": told, "spool": list(spool), "taken": self._taken})
            try:
                segment = self._open(window.sequence, len(line))
                self._disk.append(segment.path, line)
                self._disk.sync(segment.path)
            except OSError as error:
                raise output_error(self._home.windows, error) from error
            segment.size += len(line)
            segment.sequences.append(window.sequence)
            self.consumed |= set(spool)
            return window

    def _open(self, sequence: int, room: int) -> _Segment:
        """Where the next line goes. A file that was torn, or that a failed write left something in, is closed."""
        if self._segments:
            last = self._segments[-1]
            is_full = len(last.sequences) >= SEGMENT_WINDOWS or last.size + room > SEGMENT_BYTES
            if not is_full and _size(last.path) == last.size:
                return last
        while self._segments and self._is_over(room):
            self._drop(self._segments[0])
        path = self._home.windows / f"{sequence:016d}.log"
        head = _line({"dropped": self.dropped})
        self._disk.create(path, head)
        self._disk.sync(path)
        self._disk.sync(self._home.windows)
        segment = _Segment(path, len(head), sequence)
        self._segments = [one for one in self._segments if one.path != path] + [segment]
        self._let_go()
        return segment

    def _is_over(self, room: int) -> bool:
        windows = sum(len(segment.sequences) for segment in self._segments)
        size = sum(max(segment.size, 1) for segment in self._segments)
        return windows + SEGMENT_WINDOWS > self._most_windows or size + max(room, SEGMENT_BYTES) > self._most_bytes

    def _drop(self, segment: _Segment) -> None:
        lost = sum(sequence > self._taken for sequence in segment.sequences)
        if lost:
            logger.warning("%d windows that the fleet has not taken are let go: there is no more room", lost)
        if segment.path.exists():
            self._disk.remove(segment.path)
        self._segments.remove(segment)
        self.dropped += lost

    def oldest(self, count: int) -> list[Window]:
        """Up to `count` that were not taken, in order."""
        with self._lock:
            found: list[Window] = []
            for segment in self._segments:
                if segment.sequences and segment.sequences[-1] > self._taken:
                    read = (line.window for line in _lines(segment.path))
                    found += [one for one in read if one is not None and one.sequence > self._taken]
                if len(found) >= count:
                    break
            return found[:count]

    def taken(self, sequence: int) -> None:
        """The fleet has all up to this one."""
        with self._lock:
            self._taken = max(self._taken, sequence)
            self._let_go()

    def _let_go(self) -> None:
        for segment in self._segments[:-1]:
            if not segment.sequences or segment.sequences[-1] <= self._taken:
                try:
                    if segment.path.exists():
                        self._disk.remove(segment.path)
                except OSError as error:
                    logger.warning("%s stays: %s", segment.path, error.strerror)
                    return
                self._segments.remove(segment)

    def describe(self) -> dict[str, int]:
        return {
            "waiting": sum(one > self._taken for segment in self._segments for one in segment.sequences),
            "bytes": sum(segment.size for segment in self._segments),
            "dropped": self.dropped,
        }


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@dataclass(frozen=True)
class _Line:
    content: dict[str, Any]
    window: Window | None
    size: int


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _lines(path: Path) -> Iterator[_Line]:
    """Those that are whole, up to the first that is not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error.strerror)
        return
    for line in data.splitlines(keepends=True):
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
            return
        try:
            content = json.loads(text)
            window = Window.model_validate(content["window"], strict=False) if "window" in content else None
        except (ValueError, ValidationError, TypeError):
            return
        yield _Line(content, window, len(line))
