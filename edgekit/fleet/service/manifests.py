"""Manifests of bundles in the registry, read once each."""

from __future__ import annotations

import threading
from collections import OrderedDict

from edgekit.bundle.manifest import Manifest
from edgekit.errors import AbsentError
from edgekit.fleet.service.core import Core

KEPT = 64


class Manifests:
    """A bundle's digest is the SHA-256 of its manifest, so that it is a file of the registry like any other. Safe to
    use from many threads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._read: OrderedDict[str, Manifest] = OrderedDict()

    def get(self, digest: str) -> Manifest:
        """Raises AbsentError for a bundle that is not here (any more)."""
        with self._lock:
            if digest in self._read:
                self._read.move_to_end(digest)
                return self._read[digest]
        try:
            content = b"".join(self._core.blobs.read(digest))
        except KeyError:
            raise AbsentError(f"no bundle {digest[:16]}", hint="edgekit fleet bundles lists them") from None
        manifest = Manifest.model_validate_json(content)
        with self._lock:
            self._read[digest] = manifest
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
        return manifest
