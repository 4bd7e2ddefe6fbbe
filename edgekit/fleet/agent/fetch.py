"""The files of a bundle that are not here yet, each verified before it counts; what came of one is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from edgekit.bundle.layout import INDEX, MANIFEST, SIGNATURE, Index, parse_index
from edgekit.errors import BundleError
from edgekit.fleet.agent.home import Home, SlotName, output_error, sync_folder
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.registry.intake import link_or_copy

CHUNK_BYTES = 1 << 20


def fetch(
    home: Home, client: AgentClient, digest: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Offer, Index]:
    """Every file of the bundle lies in `home.blobs` after this. Raises BundleError for an index of another bundle and
    content that is not what it says, OutputError where the disk is full, and like `AgentClient`."""
    offer = client.index(digest)
    index = parse_index(offer.index.encode(), digest)
    if index.files[MANIFEST].sha256 != digest:
        raise BundleError(f"the fleet sent the index of another bundle than {digest[:16]}", hint="push it again")
    total, done = sum(entry.size_bytes for entry in index.files.values()), 0
    for entry in sorted(index.files.values(), key=lambda entry: entry.sha256):
        if not (home.blobs / entry.sha256).exists():
            _fetch_file(home, client, entry.sha256, entry.size_bytes)
        done += entry.size_bytes
        progress(done, total)
    return offer, index


def _fetch_file(home: Home, client: AgentClient, sha256: str, size: int) -> None:
    part = home.part / sha256
    try:
        with part.open("ab") as stream:
            at = stream.tell()
            if at < size:
                for chunk in client.blob(sha256, at):
                    at += len(chunk)
                    if at > size:
                        break
                    stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if at < size:
            raise BundleError(f"only {at} of {size} bytes of {sha256[:16]} came", hint="it goes on with the next try")
        if at > size or _hash(part) != sha256:
            part.unlink()
            raise BundleError(f"what came as {sha256[:16]} is something else", hint="push the bundle again")
        part.replace(home.blobs / sha256)
        sync_folder(home.blobs)
    except OSError as error:
        raise output_error(part, error) from error


def fill(home: Home, slot: SlotName, offer: Offer, index: Index) -> Path:
    """The slot holds the bundle as a folder, of links to the files; it must not be the one that counts."""
    home.clear(slot)
    fresh = home.slots / f".{slot}"
    try:
        _remove(fresh)
        fresh.mkdir()
        _write(fresh / INDEX, offer.index.encode())
        if offer.signature:
            _write(fresh / SIGNATURE, offer.signature.encode())
        for path, entry in index.files.items():
            target = fresh / path
            target.parent.mkdir(exist_ok=True)
            link_or_copy(home.blobs / entry.sha256, target)
        for folder in (*(one for one in fresh.iterdir() if one.is_dir()), fresh):
            sync_folder(folder)
        fresh.rename(home.slot(slot))
        sync_folder(home.slots)
    except OSError as error:
        raise output_error(home.slot(slot), error) from error
    return home.slot(slot)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
