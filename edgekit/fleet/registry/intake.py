"""A bundle is accepted only after everything that opening it would check has been checked here."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.layout import INDEX, SIGNATURE, Index, parse_index
from edgekit.errors import UsageError
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.registry.blobs import Blobs

MAX_BUNDLE_BYTES = 8 << 30
ORIGIN = "what was offered"


def read_offer(offer: Offer) -> Index:
    """Raises BundleError for an index that edgekit does not write, UsageError for a bundle that is too large."""
    index = parse_index(offer.index.encode(), ORIGIN)
    total = sum(entry.size_bytes for entry in index.files.values())
    if total > MAX_BUNDLE_BYTES:
        raise UsageError(f"the bundle has {total} bytes, allowed {MAX_BUNDLE_BYTES}", hint="split it, or quantize it")
    return index


def open_offered(offer: Offer, index: Index, blobs: Blobs, folder: Path, key: Path | None) -> Bundle:
    """The bundle, verified from its signature to its pickles; its files lie in `folder` as links.

    Raises like `Bundle.open`, and UsageError where files are missing, or golden answers, without which no device could
    show that it answers right.
    """
    lay_out(offer, index, blobs, folder)
    bundle = Bundle.open(folder, key)
    if not bundle.manifest.golden:
        bundle.close()
        raise UsageError(
            f"the bundle of {bundle.manifest.name} holds no golden answers, by which a device shows that it runs right",
            hint="export it again: edgekit writes them since it has a fleet",
        )
    return bundle


def lay_out(offer: Offer, index: Index, blobs: Blobs, folder: Path) -> None:
    """`folder` becomes the bundle as a directory. Raises UsageError where files are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_bytes(offer.index.encode())
    if offer.signature:
        (folder / SIGNATURE).write_bytes(offer.signature.encode())
    for path, entry in index.files.items():
        try:
            source = blobs.path(entry.sha256)
        except KeyError:
            raise UsageError(f"{path} ({entry.sha256[:16]}) is not here yet", hint="push again: it goes on") from None
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        link_or_copy(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them."""
    try:
        os.link(source, target)
    except OSError:
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as stream, source.open("rb") as content:
            shutil.copyfileobj(content, stream)
        Path(stream.name).replace(target)
