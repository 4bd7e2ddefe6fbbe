"""Reading a backup: everything is compared with its hash before anything is handed out."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from edgekit.errors import DataError
from edgekit.fleet.store.backup_file import CHUNK_BYTES, FORMAT, INDEX, MEMBER, BackupIndex, MemberEntry

MAX_INDEX_BYTES = 256 << 20


class BackupReader:
    """Its members, none of which is handed out before all of them were compared with their hashes."""

    def __init__(self, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """`progress`: bytes read, of all. Raises DataError for what is no whole backup of a known format."""
        try:
            self._stream: BinaryIO = path.open("rb")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", hint="give the file of a backup") from error
        self._path, self._total = path, path.stat().st_size
        try:
            self._found = self._scan(progress)
        except BaseException as error:
            self._stream.close()
            if isinstance(error, (tarfile.TarError, OSError, EOFError, UnicodeDecodeError, ValueError)):
                raise DataError(f"{path} is no whole backup: {error}", hint="take another one") from error
            raise

    def __enter__(self) -> BackupReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _scan(self, progress: Callable[[int, int], None]) -> dict[str, tuple[int, int]]:
        """Member -> (offset, size); every byte is read once."""
        found: dict[str, tuple[int, int]] = {}
        hashes: dict[str, str] = {}
        index: bytes | None = None
        with tarfile.open(fileobj=self._stream, mode="r:") as tar:
            for member in tar:
                told = INDEX.fullmatch(member.name)
                if index is not None or not member.isfile() or member.name in found:
                    raise self._damaged(member.name)
                if told is None and not MEMBER.fullmatch(member.name):
                    raise self._damaged(member.name)
                here = member.offset_data
                hashes[member.name] = self._hash(here, member.size)
                if told is None:
                    found[member.name] = (here, member.size)
                elif hashes[member.name] != told[1] or member.size > MAX_INDEX_BYTES:
                    raise self._damaged(member.name)
                else:
                    index = b"".join(self._chunks(here, member.size))
                progress(self._stream.tell(), self._total)
        if index is None:
            raise DataError(f"{self._path} ends too early: it is no whole backup", hint="take another one")
        self.index = self._parse(index)
        held = {name: MemberEntry(size_bytes=size, sha256=hashes[name]) for name, (_, size) in found.items()}
        for name in sorted(held.keys() | self.index.members.keys()):
            if held.get(name) != self.index.members.get(name):
                raise self._damaged(name)
        return found

    def _parse(self, body: bytes) -> BackupIndex:
        try:
            index = BackupIndex.model_validate_json(body)
        except ValidationError as error:
            raise self._damaged("its index") from error
        if index.format != FORMAT:
            raise DataError(
                f"{self._path} has format {index.format}, this edgekit reads {FORMAT}",
                hint=f"restore it with edgekit {index.edgekit}",
            )
        return index

    def _damaged(self, name: str) -> DataError:
        return DataError(f"{self._path} is damaged or altered: {name!r:.120}", hint="take another backup")

    def _hash(self, offset: int, size: int) -> str:
        digest = hashlib.sha256()
        for chunk in self._chunks(offset, size):
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self, offset: int, size: int) -> Iterator[bytes]:
        while size:
            self._stream.seek(offset)
            chunk = self._stream.read(min(CHUNK_BYTES, size))
            if not chunk:
                raise EOFError("it ends too early")
            offset, size = offset + len(chunk), size - len(chunk)
            yield chunk

    def read(self, name: str) -> Iterator[bytes]:
        return self._chunks(*self._found[name])

    def lines(self, name: str) -> Iterator[bytes]:
        """Of a packed member. Raises DataError."""
        offset, size = self._found[name]
        with gzip.GzipFile(fileobj=io.BufferedReader(_Part(self._stream, offset, size))) as stream:
            try:
                yield from stream
            except (OSError, EOFError) as error:
                raise self._damaged(name) from error

    def size(self, name: str) -> int:
        return self._found[name][1]


class _Part(io.RawIOBase):
    """A span of a file."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        self._stream, self._at, self._end = stream, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._stream.seek(self._at)
        taken = self._stream.read(min(len(buffer), self._end - self._at))
        buffer[: len(taken)] = taken
        self._at += len(taken)
        return len(taken)
