"""What may be installed, signed: kept up with the bundles, renewed before it ends, served as it was signed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from sqlalchemy import exists, select
from sqlalchemy.orm import Session
from tuf.api.metadata import TargetFile

from edgekit.errors import ConflictError, SignatureError, StoreError
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.signed import ends, file_of, is_signed, key_folder, opened, store, targets_due
from edgekit.fleet.store.tables import BundleRow, Device
from edgekit.fleet.trust.keys import ROLES, Algorithm, Role, make_signer
from edgekit.fleet.trust.repository import LIFETIME_DAYS, Repository, target_of, target_path

logger = logging.getLogger("edgekit")

LOOK_EVERY_S = 600.0  # for what ends soon
WARN_EVERY_S = 86_400.0


class Trust:
    """`folder`: holds the keys, in keys/."""

    def __init__(self, core: Core, folder: Path) -> None:
        self.core = self._core = core
        self.folder = folder
        self._looked_at = self._warned_at = 0.0

    def start(self) -> None:
        """The first metadata where there is none, else new versions of what can be signed here: after a restored
        backup devices know later ones than the database does. Raises StoreError, also where folder and database are not
        of one fleet: what one of them signs the devices of the other refuse."""
        self._belong()
        with self._core.database.write() as session:
            self._core.database.tick(session)
            repository = opened(session, self.folder, self._core.now)
            if repository is None:
                self.begin(session)
            else:
                self._publish(session, repository, {"targets", *repository.due()})

    def _belong(self) -> None:
        with self._core.database.read() as session:
            repository = opened(session, self.folder, self._core.now)
            is_empty = repository is None and not any(
                session.scalar(select(exists().select_from(one))) for one in (BundleRow, Device)
            )
        where = key_folder(self.folder).folder
        if is_empty and any(where.glob("*.pem")):
            raise StoreError(
                f"{where} holds the keys of a fleet, and the database holds none",
                hint="--db names the database of that fleet; remove the keys of a first start that was broken off",
            )
        if repository is not None and not any(repository.has_key(role) for role in ROLES):
            raise StoreError(
                f"the database holds a fleet of which no key lies in {where}",
                hint="--data names the folder of that fleet; one that was lost comes back by edgekit fleet restore",
            )

    def begin(self, session: Session, algorithm: Algorithm = "ed25519", root_folder: Path | None = None) -> Repository:
        """Keys and the first version of everything; the root's key lies in `root_folder` where given."""
        signers = {role: make_signer(algorithm) for role in ROLES}
        keys = key_folder(self.folder)
        for role, signer in signers.items():
            keys.keep(role, signer)
        repository = Repository({}, keys, self._core.now)
        repository.begin(signers)
        due = targets_due(session, repository)
        if due:
            repository.publish(repository.change_targets(due))
        store(session, repository)
        self._core.note(
            session, "service", "keys.init", "root", keys={role: key_id(repository, role) for role in ROLES}
        )
        if root_folder is not None:
            keys.export("root", repository.keys_of("root"), root_folder, move=True)
        return repository

    def _publish(self, session: Session, repository: Repository, roles: Collection[Role]) -> None:
        """New versions of those of `roles` whose keys are here, and of snapshot and timestamp."""
        drafts = []
        if "root" in roles and repository.has_key("root"):
            drafts.append(repository.draft("root"))
        if "targets" in roles and repository.has_key("targets"):
            drafts.append(repository.change_targets(targets_due(session, repository)))
        try:
            repository.publish(*drafts)
        except SignatureError as error:
            logger.error("the signed metadata stays as it is, and ends: %s", error.message)
            return
        store(session, repository)

    def renew(self) -> None:
        """What is due and can be signed here; looks every `LOOK_EVERY_S`. Warns daily of what ends and cannot. Any
        worker may call it. Raises StoreError."""
        now = self._core.now()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        with self._core.database.read() as session:
            repository = opened(session, self.folder, self._core.now)
        if repository is None or not repository.due():
            return
        able = {role for role in repository.due() if repository.has_key(role)}
        self._warn(repository, [role for role in repository.due() if role not in able])
        if not able:
            return
        with self._core.database.write() as session:
            self._core.database.tick(session)
            repository = opened(session, self.folder, self._core.now)
            if repository is not None and able & set(repository.due()):  # no other worker has done it
                self._publish(session, repository, able)

    def _warn(self, repository: Repository, roles: Collection[Role]) -> None:
        now = self._core.now()
        if now - self._warned_at < WARN_EVERY_S:
            return
        for role in roles:
            self._warned_at = now
            logger.warning(
                "the %s metadata ends in %.0f days, and its key is not here: edgekit fleet keys expiry %s --key FILE",
                role,
                (repository.ends_at(role) - now) / 86_400,
                role,
            )

    def admit(self, session: Session, digest: str, index: str, signature: str) -> bool:
        """Within the transaction that takes the bundle in. False where the key of targets is elsewhere: the bundle then
        waits for its owner."""
        return self._change(session, {target_path(digest): target_of(digest, index, signature)})

    def withdraw(self, session: Session, digest: str) -> bool:
        """Within the transaction that removes the bundle."""
        return self._change(session, {target_path(digest): None})

    def need(self, session: Session, digest: str) -> None:
        """Signs for the bundle where that was not done yet. Raises ConflictError where it cannot be done here."""
        row = session.get(BundleRow, digest)
        if row is None or is_signed(session, digest):
            return
        if not self.admit(session, digest, row.index, row.signature):
            raise ConflictError(
                f"the bundle {digest[:16]} is not in the signed metadata, and no device would take it",
                hint="where the key is: edgekit fleet keys expiry targets --key FILE, or --draft FILE",
            )

    def _change(self, session: Session, targets: Mapping[str, TargetFile | None]) -> bool:
        self._core.database.tick(session)
        repository = opened(session, self.folder, self._core.now)
        if repository is None:
            repository = self.begin(session)
        made = repository.change_targets(targets)
        if repository.lacks("targets", made):
            logger.warning("the key of targets is not here: %s waits to be signed", ", ".join(targets))
            return False
        repository.publish(made)
        store(session, repository)
        return True

    def file(self, name: str) -> bytes:
        """Raises AbsentError."""
        with self._core.database.read() as session:
            return file_of(session, name).encode()

    def ends(self) -> dict[Role, float]:
        """Of each role: when what is signed of it ends."""
        with self._core.database.read() as session:
            return ends(session)

    def ends_at(self) -> float | None:
        """When devices begin to take nothing new, unless somebody acts: snapshot and timestamp count only where they
        were not renewed in time."""
        now, found = self._core.now(), self.ends()
        late = [role for role, at in found.items() if at - now < 0.25 * 86_400 * LIFETIME_DAYS[role]]
        return min((at for role, at in found.items() if role in ("root", "targets", *late)), default=None)


def key_id(repository: Repository, role: Role) -> str:
    return repository.keys_of(role)[0].keyid[:16]
