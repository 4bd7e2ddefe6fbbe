"""The files of a bundle that are not here yet, each verified before it counts; what came of one is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection

from edgekit.bundle.layout import MANIFEST, Index, parse_index
from edgekit.errors import BundleError
from edgekit.fleet.agent.disk import output_error
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.slots import check_room, collect, hash_file, holds
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.bundles import Offer


def ask(client: AgentClient, digest: str) -> tuple[Offer, Index]:
    """What the bundle consists of, before anything is let go for it. Raises BundleError for an index of another bundle,
    SignatureError for one that nobody vouches for, and like `AgentClient`."""
    offer = client.index(digest)
    index = parse_index(offer.index.encode(), digest)
    if index.files[MANIFEST].sha256 != digest:
        raise BundleError(f"the fleet sent the index of another bundle than {digest[:16]}", hint="push it again")
    return offer, index


def fetch(
    home: Home,
    client: AgentClient,
    index: Index,
    named: Collection[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Every file of the bundle lies in `home.blobs` after this, right to the byte; the slots `named` are untouched, and
    what neither they nor it need is gone. Raises BundleError for content that is not what the index says, OutputError
    where the disk is full, and like `AgentClient`."""
    files = {entry.sha256: entry.size_bytes for entry in index.files.values()}
    collect(home, named, coming=files)
    missing = {sha256: size for sha256, size in sorted(files.items()) if not holds(home, sha256, size)}
    check_room(home, sum(missing.values()))
    total = sum(files.values())
    done = total - sum(missing.values())
    for sha256, size in missing.items():
        progress(done, total)
        _fetch_file(home, client, sha256, size)
        done += size
    progress(total, total)


def _fetch_file(home: Home, client: AgentClient, sha256: str, size: int) -> None:
    """Goes on from what came before; where that was something else, once more from the start."""
    part, disk = home.part / sha256, home.disk
    resumed = part.exists()
    try:
        _receive(home, client, sha256, size)
        if hash_file(part) != (sha256, size):
            disk.remove(part)
            if not resumed:
                raise BundleError(f"what came as {sha256[:16]} is something else", hint="push the bundle again")
            _fetch_file(home, client, sha256, size)
            return
        disk.sync(part)
        disk.rename(part, home.blobs / sha256)
        disk.sync(home.blobs)
    except OSError as error:
        raise output_error(part, error) from error


def _receive(home: Home, client: AgentClient, sha256: str, size: int) -> None:
    """Raises BundleError where less came than there is; the next try goes on from there."""
    part = home.part / sha256
    at = part.stat().st_size if part.exists() else 0
    if at == 0:
        home.disk.create(part, b"")
    if at < size:
        for chunk in client.blob(sha256, at):
            at += len(chunk)
            home.disk.append(part, chunk)
            if at > size:
                return
    if at < size:
        raise BundleError(f"only {at} of {size} bytes of {sha256[:16]} came", hint="it goes on with the next try")
