"""A bundle on disk as files, for `push`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgekit.bundle.archive import read_archive
from edgekit.bundle.layout import CHUNK_BYTES
from edgekit.fleet.protocol.bundles import Offer


class Source:
    """A bundle on disk as files: an archive or a folder, whose hashes are checked where it is received."""

    def __init__(self, path: Path) -> None:
        from edgekit.bundle import Bundle

        with Bundle.open(path):  # verified here too, before anything is sent
            pass
        self._folder = path if path.is_dir() else None
        self._stream: BinaryIO | None = None if path.is_dir() else path.open("rb")
        self._members = {} if self._stream is None else read_archive(self._stream, str(path))
        self.offer = Offer(index=self._text("index.json"), signature=self._text("signature.json"))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def _text(self, name: str) -> str:
        there = (self._folder / name).is_file() if self._folder is not None else name in self._members
        return b"".join(self.read(name, 0)).decode() if there else ""

    def read(self, name: str, at: int) -> Iterator[bytes]:
        if self._folder is not None:
            with (self._folder / name).open("rb") as stream:
                stream.seek(at)
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
            return
        assert self._stream is not None
        member = self._members[name]
        while at < member.size_bytes:
            self._stream.seek(member.offset + at)
            chunk = self._stream.read(min(CHUNK_BYTES, member.size_bytes - at))
            if not chunk:
                return
            at += len(chunk)
            yield chunk
