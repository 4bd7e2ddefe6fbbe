"""Files that hold secrets: whole or not there, for their owner alone, and refused where others could read them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from edgekit.bundle.write import sync_folder
from edgekit.errors import StoreError


def write_private(path: Path, data: bytes) -> None:
    """Mode 0600 from the first byte on; replaces what was there in one step, and is on the disk then, so that what is
    written next may count on it. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_private(path: Path) -> bytes:
    """Raises StoreError where others than its owner may read it, OSError."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise StoreError(
            f"{path} may be read by others (mode {mode:03o}, allowed 600)",
            hint=f"chmod 600 {path}; where somebody may have read it, make a new one",
        )
    return path.read_bytes()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, so that two that start together make one key. Raises OSError."""
    with (folder / ".lock").open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
