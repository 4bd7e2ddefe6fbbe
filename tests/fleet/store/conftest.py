"""A database with its tables, and a tiny file system that a test fills."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.fleet.store import Database

TINY_BYTES = 14 << 20


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url)
    found.create()
    yield found
    found.close()


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A file system of its own, in memory, which everybody may write: pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="edgekit-tiny-"))
    folder.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TINY_BYTES},mode=777", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("no file system can be mounted here: this wants root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path) -> Path:
    """Takes all that is free there; the file that does."""
    path = folder / "filler"
    with path.open("wb") as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
                stream.flush()
        except OSError:
            pass
    return path
