"""A backup is a tar file: members with their hashes, and last an index whose name holds its own hash.

tables/<name>.jsonl.gz   rows, one JSON object a line
blobs/<sha256>           files of bundles
trust/<path>             keys and certificates: whoever has the backup has them
backup.<sha256>.json     what is in it
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.bundle.write import sync_folder
from edgekit.errors import DataError, OutputError

FORMAT = 1
CHUNK_BYTES = 1 << 20
MEMBER = re.compile(r"(tables/[a-z_]+\.jsonl\.gz|blobs/[0-9a-f]{64}|trust(/[A-Za-z0-9][A-Za-z0-9._-]*){1,4})")
INDEX = re.compile(r"backup\.([0-9a-f]{64})\.json")


class MemberEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    sha256: str


class BackupIndex(BaseModel):
    """`revision`: of the tables. `rows`: how many of each table."""

    model_config = ConfigDict(frozen=True)

    format: int
    edgekit: str
    database: str
    revision: str
    made_at: float
    rows: dict[str, int]
    members: dict[str, MemberEntry]

    @property
    def blobs(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("blobs/") for name in self.members if name.startswith("blobs/"))


class BackupWriter:
    """Writes beside `path`, and puts it there with the index; without it nothing is left."""

    def __init__(self, path: Path) -> None:
        """Raises OutputError."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # for its owner alone: 0600
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._temporary = Path(name)
        self._stream = os.fdopen(handle, "wb")
        self._tar = tarfile.TarFile(fileobj=self._stream, mode="w", format=tarfile.PAX_FORMAT)
        self.members: dict[str, MemberEntry] = {}

    def __enter__(self) -> BackupWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Raises OutputError, and DataError where `chunks` are not `size` bytes."""
        reader = _Hashing(chunks)
        try:
            self._tar.addfile(_member(name, size), reader)
        except OSError as error:
            if reader.size < size and error.errno is None:
                raise DataError(f"{name} ended after {reader.size} bytes of {size}", hint="try again") from error
            raise _cannot_write(self._path, error) from error
        self.members[name] = MemberEntry(size_bytes=size, sha256=reader.hexdigest())

    def add_lines(self, name: str, lines: Iterable[bytes]) -> None:
        """Packed; by way of a file beside it, because a member's size stands before it."""
        try:
            with tempfile.TemporaryFile(dir=self._path.parent) as packed:
                with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as stream:
                    for line in lines:
                        stream.write(line)
                size = packed.tell()
                packed.seek(0)
                self.add(name, size, iter(lambda: packed.read(CHUNK_BYTES), b""))
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def finish(self, index: BackupIndex) -> int:
        """Its size in bytes; the file is whole and durable. Raises OutputError."""
        body = index.model_dump_json().encode()
        self.add(f"backup.{hashlib.sha256(body).hexdigest()}.json", len(body), [body])
        try:
            self._tar.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            size = self._stream.tell()
            self._temporary.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        return size


class _Hashing(io.RawIOBase):
    """Chunks as a file that tarfile reads, hashed on the way."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), b""
        self._digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        taken, self._rest = self._rest[:size], self._rest[size:]
        self._digest.update(taken)
        self.size += len(taken)
        return taken

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _member(name: str, size: int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.mode = size, 0o600
    return made


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}", hint="is there room, and may it be written?")
