"""A zip file with one spelling: stored entries, sorted, fixed times and permissions, nothing between them.

Any unzip reads it. The reader here accepts only what the writer here writes, byte for byte, so that compressed
bombs, overlapping entries, zip64, links, comments, duplicate names and prepended or appended data are all refused
before a byte of content is used. Format: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.bundle.layout import CHUNK_BYTES, INDEX, MAX_FILES, SIGNATURE, check_no_case_twins, check_path, chunks
from edgekit.errors import BundleError, OutputError

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")

_VERSION_NEEDED = 10
_VERSION_MADE = (3 << 8) | _VERSION_NEEDED  # Unix, for the permissions
_DATE = (1 << 5) | 1  # 1980-01-01, the earliest that the format can say
_ATTRIBUTES = 0o100644 << 16
MAX_ARCHIVE_BYTES = 0xFFFF_FFFE
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Member:
    """Content lies at `offset`, `size_bytes` long."""

    offset: int
    size_bytes: int
    crc32: int


def _local_header(name: bytes, member: Member) -> bytes:
    sizes = (member.crc32, member.size_bytes, member.size_bytes)
    return _LOCAL.pack(b"PK\3\4", _VERSION_NEEDED, 0, 0, 0, _DATE, *sizes, len(name), 0) + name


def _central_header(name: bytes, member: Member) -> bytes:
    sizes = (member.crc32, member.size_bytes, member.size_bytes)
    start = member.offset - _LOCAL.size - len(name)
    return (
        _CENTRAL.pack(
            b"PK\1\2", _VERSION_MADE, _VERSION_NEEDED, 0, 0, 0, _DATE, *sizes, len(name), 0, 0, 0, 0, _ATTRIBUTES, start
        )
        + name
    )


def write_archive(stream: BinaryIO, files: Mapping[str, Path | bytes]) -> None:
    """Writes `files` from the stream's start. Raises OutputError past 4 GiB, OSError where the stream fails."""
    central = []
    offset = 0
    for name in sorted(files):
        encoded = name.encode("ascii")
        content, crc, size = offset + _LOCAL.size + len(encoded), 0, 0
        stream.seek(content)
        for chunk in chunks(files[name]):
            stream.write(chunk)
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
            if content + size > MAX_ARCHIVE_BYTES:
                raise OutputError("the archive would pass 4 GiB", hint="write the bundle as a directory")
        member = Member(content, size, crc)
        stream.seek(offset)
        stream.write(_local_header(encoded, member))
        stream.seek(content + size)
        central.append(_central_header(encoded, member))
        offset = content + size
    directory = b"".join(central)
    if offset + len(directory) + _END.size > MAX_ARCHIVE_BYTES:
        raise OutputError("the archive would pass 4 GiB", hint="write the bundle as a directory")
    stream.write(directory)
    stream.write(_END.pack(b"PK\5\6", 0, 0, len(central), len(central), len(directory), offset, 0))


def read_archive(stream: BinaryIO, origin: str) -> dict[str, Member]:
    """Where each entry's content lies. Headers are checked in full; contents are the caller's to check.

    Raises BundleError for every archive that `write_archive` does not write.
    """
    total = stream.seek(0, 2)
    count, directory_size, directory_offset = _read_end(stream, total, origin)
    stream.seek(directory_offset)
    directory = stream.read(directory_size)
    members: dict[str, Member] = {}
    at = position = 0
    for _ in range(count):
        name, member, at = _read_central(directory, at, position, origin)
        if members and name <= next(reversed(members)):
            raise _refused(origin, "entries that are repeated or out of order")
        if member.offset + member.size_bytes > directory_offset:
            raise _refused(origin, "an entry that runs past its end")
        encoded = name.encode("ascii")
        stream.seek(position)
        header = _local_header(encoded, member)
        if stream.read(len(header)) != header:
            raise _refused(origin, f"a header of {name!r} that differs from its directory")
        members[name] = member
        position = member.offset + member.size_bytes
    if at != directory_size or position != directory_offset:
        raise _refused(origin, "bytes that belong to no entry")
    check_no_case_twins(members, origin)
    return members


def _read_end(stream: BinaryIO, total: int, origin: str) -> tuple[int, int, int]:
    if not _END.size <= total <= MAX_ARCHIVE_BYTES:
        raise _refused(origin, f"{total} bytes, allowed {_END.size} to {MAX_ARCHIVE_BYTES}")
    stream.seek(total - _END.size)
    magic, *rest = _END.unpack(stream.read(_END.size))
    disk, first_disk, count, also_count, size, offset, comment = rest
    if magic != b"PK\5\6" or disk or first_disk or count != also_count or comment:
        raise BundleError(
            f"{origin} is not an edgekit bundle, or it is truncated",
            hint="fetch it again and compare the size; `edgekit export` writes bundles",
        )
    if count > MAX_FILES or size > MAX_FILES * (_CENTRAL.size + MAX_NAME_BYTES):
        raise _refused(origin, f"{count} entries, allowed {MAX_FILES}")
    if offset + size + _END.size != total:
        raise _refused(origin, f"{total} bytes where its directory says {offset + size + _END.size}")
    return count, size, offset


def _read_central(directory: bytes, at: int, position: int, origin: str) -> tuple[str, Member, int]:
    """The entry at `at`, whose local header must lie at `position`."""
    if at + _CENTRAL.size > len(directory):
        raise _refused(origin, "a truncated directory")
    fields = _CENTRAL.unpack_from(directory, at)
    crc, stored, size, name_length = fields[7:11]
    encoded = directory[at + _CENTRAL.size : at + _CENTRAL.size + name_length]
    if fields[4] != 0 or stored != size:
        raise _refused(origin, "compressed entries, allowed stored ones")
    try:
        name = encoded.decode("ascii")
    except UnicodeDecodeError:
        raise _refused(origin, "a name that is not ASCII") from None
    if name not in (INDEX, SIGNATURE):
        check_path(name, origin)
    member = Member(position + _LOCAL.size + len(encoded), size, crc)
    header = _central_header(encoded, member)
    if directory[at : at + len(header)] != header:
        raise _refused(origin, f"an entry {name!r} that edgekit does not write (a link, times, zip64 or overlap)")
    return name, member, at + len(header)


def member_chunks(stream: BinaryIO, name: str, member: Member, origin: str) -> Iterator[bytes]:
    """The content of `member`, called `name`, a chunk at a time. Raises BundleError where it is short or its CRC-32
    differs."""
    stream.seek(member.offset)
    left, crc = member.size_bytes, 0
    while left:
        chunk = stream.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise _refused(origin, f"an entry {name!r} that ends early")
        left -= len(chunk)
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if crc != member.crc32:
        raise _refused(origin, f"an entry {name!r} whose content is not what was packed (CRC-32)")


def _refused(origin: str, what: str) -> BundleError:
    return BundleError(
        f"{origin} has {what}",
        hint="it was truncated, altered or packed by another tool: fetch it again",
    )
