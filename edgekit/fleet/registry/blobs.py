"""Files by their SHA-256, kept once: what a store of them can do, and the one in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekit.bundle.layout import CHUNK_BYTES
from edgekit.bundle.write import sync_folder
from edgekit.errors import ConflictError, StoreError, UsageError


class Blobs(Protocol):
    """A file is whole and verified, or it is not there. What has been received of one survives a restart."""

    def size(self, sha256: str) -> int | None:
        """Of a whole one; None where it is not here."""

    def received(self, sha256: str) -> int:
        """Bytes of one that is on its way."""

    def append(self, sha256: str, at: int, size: int, chunks: Iterable[bytes]) -> int:
        """Goes on at byte `at` of `size`; how much is here then. With the last byte it is verified and whole.

        Raises ConflictError where `at` is not where it stands or somebody else sends it, UsageError for too many bytes
        or another content (then nothing is kept), StoreError where it cannot be written.
        """

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Of a whole one, from `start` to before `end`. KeyError where it is not here."""

    def path(self, sha256: str) -> Path:
        """Of a whole one, a local file, fetched where need be. KeyError where it is not here."""

    def local(self, sha256: str) -> Path | None:
        """Of a whole one, a local file that is here anyway."""

    def remove(self, sha256: str) -> None:
        """One that is here or on its way, or neither."""

    def changed(self) -> Iterator[tuple[str, float]]:
        """Those that are whole or on their way, and when each last changed: seconds since 1970."""

    def __iter__(self) -> Iterator[str]:
        """Those that are whole."""


class FolderBlobs:
    """whole/<2 digits>/<digest> and part/<digest>, on one file system."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError where the folder cannot be made."""
        self._whole, self._part = folder / "whole", folder / "part"
        try:
            for place in (self._whole, self._part):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _store_error(folder, error) from error

    def size(self, sha256: str) -> int | None:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def received(self, sha256: str) -> int:
        try:
            return (self._part / sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, sha256: str, at: int, size: int, chunks: Iterable[bytes]) -> int:
        if self.size(sha256) is not None:
            return size
        part = self._part / sha256
        try:
            with part.open("ab") as stream:
                _claim(stream, sha256)
                here = _claimed_bytes(stream, part)
                if at != here:
                    raise ConflictError(f"{here} bytes of {sha256[:16]} are here, not {at}", hint="go on from there")
                for chunk in chunks:
                    here += len(chunk)
                    if here > size:
                        raise UsageError(f"more than the {size} bytes of {sha256[:16]}", hint="push again")
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
                if here == size:
                    self._finish(sha256, part)
        except UsageError:
            part.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise _store_error(part, error) from error
        return here

    def _finish(self, sha256: str, part: Path) -> None:
        found = _hash(part)
        if found != sha256:
            raise UsageError(f"what came as {sha256[:16]} has the digest {found[:16]}", hint="push again")
        target = self._path(sha256)
        target.parent.mkdir(exist_ok=True)
        part.replace(target)
        for folder in (target.parent, self._whole, self._part):
            sync_folder(folder)

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        path = self.path(sha256)

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as stream:
                stream.seek(start)
                left = (path.stat().st_size if end is None else end) - start
                while left > 0 and (chunk := stream.read(min(CHUNK_BYTES, left))):
                    left -= len(chunk)
                    yield chunk

        return chunks()

    def path(self, sha256: str) -> Path:
        path = self._path(sha256)
        if not path.is_file():
            raise KeyError(sha256)
        return path

    def local(self, sha256: str) -> Path | None:
        path = self._path(sha256)
        return path if path.is_file() else None

    def changed(self) -> Iterator[tuple[str, float]]:
        for path in (*sorted(self._whole.glob("??/*")), *sorted(self._part.iterdir())):
            with contextlib.suppress(FileNotFoundError):
                yield path.name, path.stat().st_mtime

    def remove(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)
        (self._part / sha256).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in sorted(self._whole.glob("??/*")))

    def _path(self, sha256: str) -> Path:
        return self._whole / sha256[:2] / sha256


def _claim(stream: BinaryIO, sha256: str) -> None:
    """One sender at a time, also among several processes."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConflictError(f"somebody else sends {sha256[:16]} now", hint="wait for it, and push again") from None


def _claimed_bytes(stream: BinaryIO, part: Path) -> int:
    """How long the file is now that it is claimed. Raises ConflictError where it is another one than the one that was
    opened: who held it before has finished it, and what is whole must not grow."""
    opened = os.fstat(stream.fileno())
    try:
        there = part.stat()
    except FileNotFoundError:
        there = None
    if there is None or (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
        raise ConflictError(f"somebody else has just sent {part.name[:16]}", hint="push again: it goes on from there")
    return opened.st_size


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _store_error(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left for {path.name}", hint="free some space: what came so far is kept; go on")
    return StoreError(f"cannot use {path}: {error.strerror}", hint="check the folder of the store")
