"""Bundles on the disk: filled beside those that count, looked through before they are used, removed when unnamed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from edgekit.bundle.layout import CHUNK_BYTES, INDEX, MANIFEST, SIGNATURE, Index, parse_index
from edgekit.errors import BundleError, OutputError
from edgekit.fleet.agent.disk import NO_LINKS, Disk, output_error
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.bundles import Offer

ROOM_BYTES = 16 << 20  # left free beside what comes


def is_whole(slot: Path, digest: str) -> bool:
    """Whether the slot holds this bundle, byte by byte as its index says. What a first trial has judged (signature,
    manifest, pickles) follows from the bytes and is not judged again."""
    try:
        index = parse_index((slot / INDEX).read_bytes(), str(slot))
        return index.files[MANIFEST].sha256 == digest and all(
            hash_file(slot / path) == (entry.sha256, entry.size_bytes) for path, entry in index.files.items()
        )
    except (OSError, BundleError):
        return False


def hash_file(path: Path) -> tuple[str, int]:
    """(sha256, size in bytes)."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def holds(home: Home, sha256: str, size: int) -> bool:
    """Whether the file is here as it should be; one that is damaged is let go."""
    blob = home.blobs / sha256
    try:
        if hash_file(blob) == (sha256, size):
            return True
        home.disk.remove(blob)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise output_error(blob, error) from error
    return False


def check_room(home: Home, wanted: int) -> None:
    """Raises OutputError before a disk is filled to its last byte, which everybody there would suffer from."""
    free = shutil.disk_usage(home.path).free
    if wanted + ROOM_BYTES > free:
        raise OutputError(
            f"{wanted} more bytes are to come, and {free} are free at {home.path}",
            hint=f"free some: {ROOM_BYTES >> 20} MB stay free; what runs goes on running",
        )


def fill(home: Home, digest: str, offer: Offer, index: Index) -> Path:
    """The slot holds the bundle as a folder, of links to its files. No state names it yet. Raises OutputError."""
    disk, slot = home.disk, home.slot(digest)
    fresh = home.slots / f".{digest}"
    try:
        disk.remove_tree(fresh)
        disk.make_folder(fresh)
        _write(disk, fresh / INDEX, offer.index.encode())
        if offer.signature:
            _write(disk, fresh / SIGNATURE, offer.signature.encode())
        for folder in sorted({Path(path).parent for path in index.files} - {Path()}):
            disk.make_folder(fresh / folder)
        for path, entry in index.files.items():
            _link(disk, home.blobs / entry.sha256, fresh / path)
        for folder in (*(one for one in fresh.iterdir() if one.is_dir()), fresh):
            disk.sync(folder)
        disk.remove_tree(slot)  # one that was damaged
        disk.rename(fresh, slot)
        disk.sync(home.slots)
    except OSError as error:
        raise output_error(slot, error) from error
    return slot


def _write(disk: Disk, path: Path, data: bytes) -> None:
    disk.create(path, data)
    disk.sync(path)


def _link(disk: Disk, source: Path, target: Path) -> None:
    """A copy where the file system has no hard links."""
    try:
        disk.link(source, target)
        return
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    with source.open("rb") as stream:
        disk.create(target, b"")
        while chunk := stream.read(CHUNK_BYTES):
            disk.append(target, chunk)
    disk.sync(target)


def drop(home: Home, digest: str) -> None:
    """A slot that is damaged, and those of its files that are. Raises OutputError."""
    slot = home.slot(digest)
    for sha256, size in _files(slot):
        holds(home, sha256, size)
    try:
        home.disk.remove_tree(slot)
    except OSError as error:
        raise output_error(slot, error) from error


def collect(home: Home, named: Iterable[str], coming: Iterable[str] = ()) -> None:
    """Lets go of slots that are not `named`, and of files that none of the named holds, nor is `coming` (hashes).
    Raises OutputError."""
    kept = set(named)
    try:
        for slot in sorted(home.slots.iterdir()):
            if slot.name not in kept:
                home.disk.remove_tree(slot)
        held = {sha256 for digest in kept for sha256, _ in _files(home.slot(digest))}
        wanted = {home.blobs: held | set(coming), home.part: set(coming)}
        for folder, names in wanted.items():
            for file in sorted(folder.iterdir()):
                if file.name not in names:
                    home.disk.remove(file)
    except OSError as error:
        raise output_error(home.path, error) from error


def _files(slot: Path) -> list[tuple[str, int]]:
    """(sha256, size) of what its index names; none where that cannot be read."""
    try:
        index = parse_index((slot / INDEX).read_bytes(), str(slot))
    except (OSError, BundleError):
        return []
    return [(entry.sha256, entry.size_bytes) for entry in index.files.values()]
