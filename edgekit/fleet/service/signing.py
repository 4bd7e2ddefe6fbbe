"""What the owner of a fleet does with its signing keys: looks, changes, takes away, signs where a key lies elsewhere.

Whatever a key that is not here must sign becomes a draft, a file that `sign` puts a signature into on the machine that
has the key, and that `publish` takes back. It works beside a service that runs: both go through the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata

from edgekit.errors import ConflictError, EdgekitError, OutputError, SignatureError, StoreError, UsageError
from edgekit.fleet.service.signed import key_folder, opened, store, targets_due
from edgekit.fleet.service.trust import Trust
from edgekit.fleet.trust.keys import ROLES, Algorithm, Role, make_signer, read_signer
from edgekit.fleet.trust.repository import Repository, read_metadata, to_bytes

MOST_BYTES = 8 << 20  # of a draft


@dataclass(frozen=True)
class RoleKeys:
    """`here`: its private key lies in the data folder."""

    role: Role
    keys: tuple[str, ...]
    here: bool
    version: int
    ends_at: float


class Signing:
    """`extra`: keys that lie elsewhere and were brought for this."""

    def __init__(self, trust: Trust, extra: Sequence[CryptoSigner] = ()) -> None:
        self._trust, self._core, self._extra = trust, trust.core, tuple(extra)

    def show(self) -> tuple[RoleKeys, ...]:
        """Raises StoreError where there is nothing yet."""
        with self._core.database.read() as session:
            found = self._opened(session, ())
        return tuple(
            RoleKeys(
                role,
                tuple(key.keyid for key in found.keys_of(role)),
                found.has_key(role),
                found.version(role),
                found.ends_at(role),
            )
            for role in ROLES
        )

    def begin(self, algorithm: Algorithm, root_folder: Path | None) -> None:
        """Before the service starts for the first time. Raises ConflictError where it has its keys already."""
        with self._changing() as session:
            if opened(session, self._trust.folder, self._core.now) is not None:
                raise ConflictError("the fleet has its keys already", hint="edgekit fleet keys rotate changes one")
            self._trust.begin(session, algorithm, root_folder)

    def rotate(
        self, role: Role, algorithm: Algorithm = "ed25519", public: SSlibKey | None = None, draft: Path | None = None
    ) -> bool:
        """A new key for the role in the place of the one before, made here or, `public`, elsewhere. Devices follow it
        by the chain of roots. Whether it is published; else `draft` waits for signatures.

        Raises SignatureError where keys lack and there is no `draft`, UsageError for a `public` key of snapshot or
        timestamp, which the service signs with by itself."""
        if public is not None and role in ("snapshot", "timestamp"):
            raise UsageError(f"a key elsewhere for {role}", hint="the service signs it every day: leave it here")
        keys = key_folder(self._trust.folder)
        made = make_signer(algorithm) if public is None else None
        if made is not None:
            keys.keep(role, made)
        new = public if made is None else made.public_key
        assert new is not None
        try:
            with self._changing() as session:
                repository = self._opened(session, () if made is None else (made,))
                before = [key.keyid for key in repository.keys_of(role)]
                published = self._publish(session, repository, self._drafts(repository, role, new, draft), draft)
                action = "keys.rotate" if published else "keys.draft"
                self._core.note(session, "keys", action, role, before=before, now=new.keyid)
        except EdgekitError as error:
            # Where nobody can say whether it was stored, the key may count already: one that does not does no harm.
            if made is not None and not isinstance(error, StoreError):
                keys.drop(role, new.keyid)
            raise
        for key in before if published else ():
            keys.drop(role, key)
        return published

    def _drafts(self, repository: Repository, role: Role, new: Key, draft: Path | None) -> list[Metadata[Any]]:
        """Of a root with the new key; and of targets, where that key lies elsewhere and must sign them too."""
        drafts = [repository.change_key(role, new)]
        brought = {signer.public_key.keyid for signer in self._extra}
        here = key_folder(self._trust.folder).path(role, new.keyid).exists()
        if role == "targets" and not here and new.keyid not in brought:
            if draft is None:
                raise SignatureError("the new key must sign the targets too", hint="--key FILE, or --draft FILE")
            drafts.append(repository.draft("targets"))
            drafts[-1].signatures.clear()  # of the key that goes
        return drafts

    def extend(self, role: Role, days: float | None, draft: Path | None = None) -> bool:
        """Signed anew, to count for `days` from now; of targets with all bundles that are here. Like `rotate`."""
        with self._changing() as session:
            repository = self._opened(session, ())
            if role in ("snapshot", "timestamp"):
                repository.publish()
                store(session, repository)
                return True
            made = repository.draft(role, days)
            if role == "targets":
                made = repository.change_targets(targets_due(session, repository), days)
            published = self._publish(session, repository, [made], draft)
            self._core.note(session, "keys", "keys.expiry" if published else "keys.draft", role, days=days)
        return published

    def publish(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Drafts that were signed; of which roles. Raises SignatureError, ConflictError, UsageError."""
        drafts = [read_draft(path) for path in files]
        drafts.sort(key=lambda made: ROLES.index(made.signed.type))
        roles = tuple(str(made.signed.type) for made in drafts)
        if not set(roles) <= {"root", "targets"}:
            raise UsageError(f"drafts of {', '.join(roles)}, allowed root and targets", hint="see edgekit fleet keys")
        with self._changing() as session:
            repository = self._opened(session, ())
            before = {role: [key.keyid for key in repository.keys_of(role)] for role in ROLES}
            repository.publish(*drafts)
            store(session, repository)
            after = {role: [key.keyid for key in repository.keys_of(role)] for role in ROLES}
            self._core.note(session, "keys", "keys.publish", ",".join(roles), keys=after)
        keys = key_folder(self._trust.folder)
        for role in ROLES:
            for key in set(before[role]) - set(after[role]):
                keys.drop(role, key)
        return roles

    def export(self, role: Role, folder: Path, *, move: bool) -> list[Path]:
        """A copy of the private key, or, with `move`, the only one. Raises UsageError, OutputError."""
        if move and role in ("snapshot", "timestamp"):
            raise UsageError(f"the service signs {role} every day", hint="leave its key here")
        with self._changing() as session:
            repository = self._opened(session, ())
            made = key_folder(self._trust.folder).export(role, repository.keys_of(role), folder, move=move)
            self._core.note(session, "keys", "keys.export", role, moved=move)
        return made

    def _publish(
        self, session: Session, repository: Repository, drafts: Sequence[Metadata[Any]], draft: Path | None
    ) -> bool:
        lacking = [text for made in drafts if (text := repository.lacks(made.signed.type, made))]
        if draft is not None and (lacking or len(drafts) > 1):
            for made, path in zip(drafts, draft_paths(draft), strict=False):
                write_draft(path, made)
            return False
        if lacking:
            raise SignatureError(
                "; ".join(lacking), hint="--key FILE brings a key; --draft FILE lets it sign elsewhere"
            )
        repository.publish(*drafts)
        store(session, repository)
        return True

    def _opened(self, session: Session, more: Iterable[CryptoSigner]) -> Repository:
        found = opened(session, self._trust.folder, self._core.now, (*self._extra, *more))
        if found is None:
            raise StoreError("the fleet has no signing keys yet", hint="edgekit fleet keys init, or start the service")
        return found

    @contextmanager
    def _changing(self) -> Iterator[Session]:
        with self._core.database.write() as session:
            self._core.database.tick(session)
            yield session


def draft_paths(draft: Path) -> tuple[Path, Path]:
    """Of the first draft, and of the targets that must be signed with it."""
    return draft, draft.with_suffix(".targets.json")


def read_draft(path: Path) -> Metadata[Any]:
    """Raises UsageError, SignatureError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size} bytes, allowed {MOST_BYTES}", hint="is it a draft?")
        return read_metadata(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error


def write_draft(path: Path, made: Metadata[Any], *, replace: bool = False) -> None:
    """Raises OutputError where there is one already."""
    if path.exists() and not replace:
        raise OutputError(f"{path} exists", hint="publish it, or remove it")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fresh.write_bytes(to_bytes(made))
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose another place") from error


def sign_draft(path: Path, keys: Sequence[Path]) -> tuple[str, ...]:
    """Puts signatures into the file, wherever it is; the ids of the keys. Raises UsageError, OutputError."""
    made = read_draft(path)
    signers = [read_signer(key) for key in keys]
    for signer in signers:
        made.sign(signer, append=True)
    write_draft(path, made, replace=True)
    return tuple(signer.public_key.keyid for signer in signers)


def described(made: Metadata[Any]) -> dict[str, Any]:
    """What whoever signs it should look at."""
    signed = made.signed
    told: dict[str, Any] = {
        "role": signed.type,
        "version": signed.version,
        "ends_at": signed.expires.timestamp(),
        "signed_by": sorted(made.signatures),
    }
    if signed.type == "root":
        told["keys"] = {role: list(found.keyids) for role, found in signed.roles.items()}
    if signed.type == "targets":
        told["bundles"] = sorted(path.partition("/")[0] for path in signed.targets)
    return told
