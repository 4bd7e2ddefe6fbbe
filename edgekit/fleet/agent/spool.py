"""What applications saw, on its way to the agent: sums, in small files that are written beside and renamed.

spool/<process>-<number>.json    {"digest": "...", "answered": 12, "latency": {"28": 12}, ...}

Nobody locks anything: every process has names of its own, and the agent takes away what it has read. While it does not,
a process keeps at most a few files there and goes on adding up in memory, so that nothing grows without an agent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgekit.fleet.agent.tally import Tally
from edgekit.fleet.protocol.wire import Digest

logger = logging.getLogger("edgekit")

FLUSH_S = 10.0
MOST_OWN = 4
MOST_FILES, MOST_BYTES = 256, 64 << 10

_TALLIES, _DIGESTS = TypeAdapter(Tally), TypeAdapter(Digest)


class SpoolRecorder:
    """Of one process and one bundle; safe from any thread. `home`: the agent's folder. Never raises for what cannot be
    written: an application goes on without being watched. Close it for the last sums."""

    def __init__(
        self, home: Path, digest: str, flush_s: float = FLUSH_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.digest = digest
        self._folder = home / "spool"
        self._flush_s, self._now = flush_s, now
        self._process = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._tally, self._flushed_at = Tally(), now()
        self._written: list[Path] = []
        self._number = 0
        self._told = False

    def answered(
        self,
        latency_ms: float,
        variant: str = "",
        *,
        degraded: bool = False,
        late: bool = False,
        confidence: float | None = None,
        input_means: Iterable[float] = (),
    ) -> None:
        with self._lock:
            tally = self._tally
            tally.answered += 1
            tally.degraded += degraded
            tally.late += late
            tally.count(tally.latency, latency_ms)
            if variant:
                tally.plan(variant)
            if confidence is not None:
                tally.count(tally.confidence, confidence)
            for mean in input_means:
                tally.count(tally.inputs, mean)
        self._flush_if_due()

    def failed(self, late: bool = False) -> None:
        with self._lock:
            self._tally.errors += 1
            self._tally.late += late
        self._flush_if_due()

    def compared(self, agreed: bool) -> None:
        with self._lock:
            self._tally.compared += 1
            self._tally.agreed += agreed
        self._flush_if_due()

    def linked(self, bandwidth_mbps: float, rtt_ms: float, loss: float) -> None:
        with self._lock:
            self._tally.link(bandwidth_mbps, rtt_ms, loss)

    def _flush_if_due(self) -> None:
        if self._now() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            self._flushed_at = self._now()
            if self._tally.is_empty:
                return
            try:
                self._written = [path for path in self._written if path.exists()]
                if len(self._written) >= MOST_OWN or sum(1 for _ in self._folder.iterdir()) >= MOST_FILES:
                    return
                self._write()
            except OSError as error:
                if not self._told:
                    logger.warning("the agent does not hear of this application: %s", error)
                self._told = True

    def _write(self) -> None:
        self._number += 1
        path = self._folder / f"{self._process}-{self._number}.json"
        fresh = path.with_name(f".{path.name}")
        try:
            fresh.write_text(json.dumps({"digest": self.digest, **self._tally.to_json()}))
            fresh.chmod(0o640)
            fresh.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        self._written.append(path)
        self._tally = Tally()

    def close(self) -> None:
        self.flush()


def read_spool(folder: Path, consumed: Iterable[str] = ()) -> tuple[dict[str, Tally], list[Path]]:
    """(digest -> its sums, the files that were read). Those `consumed` before, and what is none of ours, are among the
    files and not in the sums. What is being written is left alone for an hour."""
    found: dict[str, Tally] = {}
    files: list[Path] = []
    known = set(consumed)
    for entry in sorted(os.scandir(folder), key=lambda one: one.name) if folder.is_dir() else []:
        path = Path(entry.path)
        try:
            about = entry.stat(follow_symlinks=False)
            if entry.name.startswith("."):
                if time.time() - about.st_mtime > 3600:
                    files.append(path)
                continue
            files.append(path)
            if entry.name in known or not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
                continue
            content = json.loads(path.read_bytes())
            digest = _DIGESTS.validate_python(content.pop("digest"))
            tally = _TALLIES.validate_python(content)
            found.setdefault(digest, Tally()).add(tally)
        except (OSError, ValueError, ValidationError, LookupError, TypeError, AttributeError) as error:
            logger.warning("%s is no report of an application: %s", path, error)
    return found, files
