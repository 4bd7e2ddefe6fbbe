"""Signed metadata in the database: every version of the root, the newest few of the rest.

It is changed in the transaction of what it is about, so that a bundle which is accepted is signed for, or neither.
Whoever changes it first raises the clock's tick, behind which other workers wait.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from securesystemslib.signer import CryptoSigner
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from tuf.api.metadata import TargetFile

from edgekit.errors import AbsentError, StoreError
from edgekit.fleet.store.tables import BundleRow, SignedRow
from edgekit.fleet.trust.keys import ROLES, KeyFolder, Role
from edgekit.fleet.trust.repository import Repository, read_metadata, target_of, target_path

AT_ONCE = 500  # bundles in one statement
KEPT_VERSIONS = 16  # of targets, snapshot and timestamp: who read an older timestamp still finds what it names
_NAME = re.compile(r"(?:([1-9]\d{0,17})\.(root|snapshot|targets)|(timestamp))\.json")


def key_folder(trust: Path) -> KeyFolder:
    return KeyFolder(trust / "keys")


def newest(session: Session, role: Role) -> SignedRow | None:
    return session.scalar(select(SignedRow).where(SignedRow.role == role).order_by(SignedRow.version.desc()).limit(1))


def newest_root(session: Session) -> str:
    """What a device that enrols trusts first. Raises StoreError where there is none."""
    row = newest(session, "root")
    if row is None:
        raise StoreError("the fleet has no signed metadata", hint="start the service once")
    return row.body


def file_of(session: Session, name: str) -> str:
    """`7.root.json`, `timestamp.json` and so on, as it was signed. Raises AbsentError."""
    found = _NAME.fullmatch(name)
    row = None
    if found is not None:
        version, role, unnumbered = found.groups()
        row = newest(session, "timestamp") if unnumbered else session.get(SignedRow, (role, int(version)))
    if row is None:
        raise AbsentError(f"no metadata {name:.60}", hint="timestamp.json, 1.root.json")
    return row.body


def opened(
    session: Session, trust: Path, now: Callable[[], float], extra: Iterable[CryptoSigner] = ()
) -> Repository | None:
    """As it stands; None for a fleet that has none yet."""
    bodies = {role: row.body.encode() for role in ROLES if (row := newest(session, role)) is not None}
    if not bodies:
        return None
    lacking = set(ROLES) - set(bodies)
    if lacking:
        raise StoreError(f"the database lacks signed metadata: {', '.join(sorted(lacking))}", hint="restore the backup")
    return Repository(bodies, key_folder(trust), now, extra)


def store(session: Session, repository: Repository) -> None:
    """What is fresh in it; old versions go."""
    for role, body in repository.fresh.items():
        session.add(
            SignedRow(role=role, version=repository.version(role), body=body.decode(), ends_at=repository.ends_at(role))
        )
        session.flush()
        if role != "root":
            kept = select(SignedRow.version).where(SignedRow.role == role).order_by(SignedRow.version.desc())
            oldest = session.scalar(kept.offset(KEPT_VERSIONS - 1).limit(1))
            if oldest is not None:
                session.execute(delete(SignedRow).where(SignedRow.role == role, SignedRow.version < oldest))
    repository.fresh.clear()


def targets_due(session: Session, repository: Repository) -> dict[str, TargetFile | None]:
    """What the signed targets lack of the bundles that are here, and what they name beyond them (None)."""
    here = {target_path(digest): digest for digest in session.scalars(select(BundleRow.digest))}
    named = repository.targets()
    lacking = [digest for path, digest in here.items() if path not in named]
    due: dict[str, TargetFile | None] = {path: None for path in named if path not in here}
    for start in range(0, len(lacking), AT_ONCE):
        some = select(BundleRow).where(BundleRow.digest.in_(lacking[start : start + AT_ONCE]))
        for row in session.scalars(some):
            due[target_path(row.digest)] = target_of(row.digest, row.index, row.signature)
    return due


def is_signed(session: Session, digest: str) -> bool:
    row = newest(session, "targets")
    return row is not None and target_path(digest) in read_metadata(row.body.encode(), "targets").signed.targets


def ends(session: Session) -> dict[Role, float]:
    """When the newest of each role ends."""
    found = {role: newest(session, role) for role in ROLES}
    return cast(dict[Role, float], {role: row.ends_at for role, row in found.items() if row is not None})
