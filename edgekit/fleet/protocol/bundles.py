"""How a bundle reaches the registry: its index first, then the files that are missing, then the request to accept it.

POST /v1/uploads                     Offer -> Wanted: which files are not here yet, and how far each has come
PUT  /v1/blobs/<sha256>?at=<offset>  the bytes of a file from an offset on -> Received
POST /v1/bundles                     Offer -> BundleView: everything is verified, then it is accepted
GET  /v1/bundles[/<digest>]          what is there; .../report is the page of `edgekit export`
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgekit.bundle.layout import INDEX, MAX_BYTES, SIGNATURE
from edgekit.fleet.protocol.wire import Digest, Heard, Wire


class Offer(Wire):
    """`index` and `signature`: index.json and signature.json of the bundle as they stand, "" for no signature."""

    index: Annotated[str, Field(max_length=MAX_BYTES[INDEX])]
    signature: Annotated[str, Field(max_length=MAX_BYTES[SIGNATURE])] = ""


class Missing(Heard):
    """`received` of `size_bytes` are here: go on from there."""

    sha256: str
    path: str
    size_bytes: int
    received: int


class Wanted(Heard):
    """`digest` of the bundle, by its index; `held` bytes are here already."""

    digest: str
    missing: tuple[Missing, ...]
    held: int


class Received(Heard):
    received: int
    complete: bool


class FileView(Heard):
    path: str
    sha256: str
    size_bytes: int


class BundleView(Heard):
    """`running`: devices that answer with it now. `new_bytes`: what it added to the registry."""

    digest: Digest
    name: str
    task: str
    device: str
    tiers: tuple[str, ...]
    size_bytes: int
    new_bytes: int
    pushed_at: float
    pushed_by: str
    signed_by: str = ""
    running: int = 0
    files: tuple[FileView, ...] = ()
