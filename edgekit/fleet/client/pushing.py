"""Sending a bundle: only what the registry lacks travels, and what broke off goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx

from edgekit.errors import ConflictError
from edgekit.fleet.client.connection import TIMEOUT_S, Connection
from edgekit.fleet.client.source import Source
from edgekit.fleet.protocol.bundles import BundleView, Received, Wanted

PAUSE_S = 0.5
PATIENCE_S = 60.0  # with somebody else who sends the same files, and of whose bytes no more come in


def push(connection: Connection, path: Path, progress: Callable[[int, int], None]) -> BundleView:
    """`path`: an archive or a folder. `progress`: bytes done, of all. Two who send bundles with a file in common take
    turns. Raises ConflictError where the other one stands still."""
    most, grown_at = -1, time.monotonic()
    with Source(path) as source:
        while True:
            wanted = connection.ask(Wanted, "POST", "/uploads", source.offer)
            there = wanted.held + sum(one.received for one in wanted.missing)
            if there > most:
                most, grown_at = there, time.monotonic()
            try:
                _send(connection, source, wanted, progress)
                return connection.ask(BundleView, "POST", "/bundles", source.offer)
            except ConflictError:
                if time.monotonic() - grown_at > PATIENCE_S:
                    raise
                time.sleep(PAUSE_S)


def _send(connection: Connection, source: Source, wanted: Wanted, progress: Callable[[int, int], None]) -> None:
    """Raises ConflictError where somebody else sends one of the files."""
    total = wanted.held + sum(one.size_bytes for one in wanted.missing)
    done = wanted.held
    for one in wanted.missing:
        progress(done + one.received, total)
        connection.ask(
            Received,
            "PUT",
            f"/blobs/{one.sha256}",
            params={"at": one.received, "size": one.size_bytes},
            content=source.read(one.path, one.received),
            timeout=httpx.Timeout(TIMEOUT_S, write=None),
        )
        done += one.size_bytes
    progress(total, total)
