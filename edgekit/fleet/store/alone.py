"""One service for one SQLite file: it holds in memory what it decides by, and nobody else may change that."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from edgekit.errors import ConflictError
from edgekit.fleet.store.database import Database


@contextmanager
def alone(database: Database) -> Iterator[None]:
    """The lock goes with the process. On PostgreSQL services hear of each other. Raises ConflictError."""
    if database.path is None:
        yield
        return
    folder = database.path.parent
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"another service serves {folder}", hint="stop it, or give another --data; several want PostgreSQL"
            ) from None
        yield
    finally:
        os.close(descriptor)
