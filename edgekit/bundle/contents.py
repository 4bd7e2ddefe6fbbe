"""The bytes of a bundle, wherever they lie: a directory or an archive, verified as a whole before anything is used."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from edgekit.bundle.archive import Member, member_chunks, read_archive
from edgekit.bundle.layout import (
    CHUNK_BYTES,
    INDEX,
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    SIGNATURE,
    Entry,
    Index,
    check_manifest,
    check_no_case_twins,
    check_path,
    parse,
    parse_index,
)
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.screening import refuse_pickle
from edgekit.bundle.signature import Signature, check, check_key
from edgekit.errors import BundleError, SignatureError


class Contents(ABC):
    """Files by their path in the bundle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.origin = str(path)

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Every file that is there, with its size."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """What `name` holds, a chunk at a time."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """What `name` holds, seekable."""

    @abstractmethod
    def close(self) -> None:
        """Frees the file."""

    def read(self, name: str) -> bytes:
        """A small file, whole. Raises BundleError past its bound."""
        size = self.sizes().get(name)
        if size is None:
            raise BundleError(
                f"{self.origin} holds no {name}", hint="it is truncated or no bundle; `edgekit export` writes bundles"
            )
        if size > MAX_BYTES[name]:
            raise BundleError(
                f"{name} of {self.origin} has {size} bytes, allowed {MAX_BYTES[name]}",
                hint="do not use this bundle; fetch it again from where it was made",
            )
        return b"".join(self.chunks(name))

    def check_file(self, name: str, entry: Entry) -> None:
        """Raises BundleError where `name` is not what the index says."""
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            digest.update(chunk)
            size += len(chunk)
        if size != entry.size_bytes or digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{name} of {self.origin} has sha256 {digest.hexdigest()[:16]}... and {size} bytes, "
                f"its index says {entry.sha256[:16]}... and {entry.size_bytes}",
                hint="it was altered or damaged: fetch the bundle again",
            )


class DirectoryContents(Contents):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._sizes = dict(self._walk())
        check_no_case_twins(self._sizes, self.origin)

    def _walk(self) -> Iterator[tuple[str, int]]:
        count = 0
        for folder in ("", "parts", "assets"):
            if folder and not (self.path / folder).exists():
                continue
            for entry in os.scandir(self.path / folder):
                count += 1
                name = f"{folder}/{entry.name}" if folder else entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if name in ("parts", "assets") and stat.S_ISDIR(mode):
                    continue
                if count > MAX_FILES or not stat.S_ISREG(mode):
                    what = f"more than {MAX_FILES} files" if count > MAX_FILES else f"{name[:200]!r}, not a plain file"
                    raise BundleError(
                        f"{self.origin} holds {what}", hint="keep nothing else in a bundle's folder, and no links"
                    )
                if name not in (INDEX, SIGNATURE):
                    check_path(name, self.origin)
                yield name, entry.stat(follow_symlinks=False).st_size

    def sizes(self) -> dict[str, int]:
        return self._sizes

    def chunks(self, name: str) -> Iterator[bytes]:
        left = self._sizes[name] + 1  # a file that grows meanwhile ends here, and fails its check
        with self.open(name) as stream:
            while left > 0 and (chunk := stream.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    def open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")

    def close(self) -> None:
        pass


class ArchiveContents(Contents):
    """Holds the file open, so that what was verified is what is read later, even if the path is replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stream = path.open("rb")
        try:
            self._members = read_archive(self._stream, self.origin)
        except BaseException:
            self._stream.close()
            raise
        self._sizes = {name: member.size_bytes for name, member in self._members.items()}

    def sizes(self) -> dict[str, int]:
        return self._sizes

    def chunks(self, name: str) -> Iterator[bytes]:
        return member_chunks(self._stream, name, self._members[name], self.origin)

    def open(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], io.BufferedReader(_Window(self._stream, self._members[name])))

    def close(self) -> None:
        self._stream.close()


class _Window(io.RawIOBase):
    """One member of an archive, as a file of its own."""

    def __init__(self, stream: BinaryIO, member: Member) -> None:
        super().__init__()
        self._stream, self._member, self._at = stream, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._member.size_bytes)[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._stream.seek(self._member.offset + self._at)
        data = self._stream.read(max(0, min(len(buffer), self._member.size_bytes - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_contents(path: Path) -> Contents:
    """Raises BundleError where there is nothing at `path`, or nothing that could be a bundle."""
    try:
        if path.is_dir():
            return DirectoryContents(path)
        if path.is_file():
            return ArchiveContents(path)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    raise BundleError(f"no bundle at {path}", hint="check the path; `edgekit export MODEL -o FILE.edgekit` writes one")


def verify_contents(contents: Contents, key: Path | None) -> tuple[Index, Manifest, Signature | None]:
    """Signature, then the set of files, sizes and hashes, then what they say. Raises BundleError or SignatureError."""
    origin = contents.origin
    data = contents.read(INDEX)
    signature = _read_signature(contents)
    if key is not None:
        check_key(key)
        if signature is None:
            raise SignatureError(f"{origin} is not signed", hint="ask its maker to export with --sign KEY")
        check(signature, data, key, origin)
    index = parse_index(data, origin)
    sizes = contents.sizes()
    found = sizes.keys() - {INDEX, SIGNATURE}
    if found != index.files.keys():
        missing, extra = sorted(index.files.keys() - found), sorted(found - index.files.keys())
        raise BundleError(
            f"{origin} does not hold what its index lists: missing {missing[:5]}, extra {extra[:5]}",
            hint="fetch the bundle again from where it was made",
        )
    for name, entry in index.files.items():
        if sizes[name] != entry.size_bytes:
            raise BundleError(
                f"{name} of {origin} has {sizes[name]} bytes, its index says {entry.size_bytes}",
                hint="it was truncated or altered: fetch the bundle again",
            )
    for name, entry in index.files.items():
        contents.check_file(name, entry)
    manifest = parse(Manifest, contents.read(MANIFEST), MANIFEST, origin)
    check_manifest(manifest, index, origin)
    for name in index.files:
        if "/" in name:
            with contents.open(name) as stream:
                refuse_pickle(name, stream)
    return index, manifest, signature


def _read_signature(contents: Contents) -> Signature | None:
    if SIGNATURE not in contents.sizes():
        return None
    return parse(Signature, contents.read(SIGNATURE), SIGNATURE, contents.origin)
