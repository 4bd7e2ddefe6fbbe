"""The signing keys of a fleet, opened beside a service that runs, or before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import StoreError
from edgekit.fleet.registry.blobs import FolderBlobs
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.signing import Signing
from edgekit.fleet.service.trust import Trust
from edgekit.fleet.store.database import Database
from edgekit.fleet.trust.authority import Authority
from edgekit.fleet.trust.keys import read_signer


@contextmanager
def open_signing(folder: Path, url: str | None, keys: Sequence[Path] = (), *, make: bool = False) -> Iterator[Signing]:
    """`folder` and `url` as the service has them; made with `make`. Raises StoreError, UsageError for a key that cannot
    be read."""
    signers = [read_signer(path) for path in keys]
    if not make and not (folder / "trust").is_dir():
        raise StoreError(f"{folder} holds no fleet", hint="--data names the folder of the service; `init` makes one")
    try:
        (folder / "trust").mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(f"cannot use {folder}: {error.strerror}", hint="choose another --data folder") from error
    database = Database(url or f"sqlite:///{folder / 'fleet.db'}")
    try:
        database.create()
        core = Core(database, FolderBlobs(folder / "blobs"), Authority(folder / "trust"), folder / "work")
        yield Signing(Trust(core, folder / "trust"), signers)
    finally:
        database.close()
