"""Signed metadata of what may be installed, as The Update Framework 1.0 has it (theupdateframework.github.io).

root       whose keys count for which role; signed by the root before it and by itself
targets    `<digest>/index.json` of every bundle: its length and its SHA-256, and the signature's as `custom`
snapshot   which version of targets belongs to it
timestamp  which snapshot is the newest; ends soon, so that nobody can hold newer ones back for long

The index names every file of a bundle by its hash, so the index is the target. Versions of all but the root are
seconds since 1970 at least, so that what a restored backup publishes is still newer than what devices have seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from edgekit.errors import ConflictError, SignatureError
from edgekit.fleet.trust.keys import ROLES, KeyFolder, Role

LIFETIME_DAYS: dict[Role, float] = {"root": 365, "targets": 90, "snapshot": 7, "timestamp": 1}
RENEW_AT = 0.5  # of its life: a service that stands still for half a day still comes in time
KINDS: dict[Role, type[Any]] = {"root": Root, "targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}


def target_path(digest: str) -> str:
    return f"{digest}/index.json"


def target_of(digest: str, index: str, signature: str) -> TargetFile:
    target = TargetFile.from_data(target_path(digest), index.encode())
    if signature:
        sealed = TargetFile.from_data("signature.json", signature.encode())
        target.unrecognized_fields["custom"] = {"signature": {"length": sealed.length, "hashes": sealed.hashes}}
    return target


class Repository:
    """The four roles as they stand. A change makes new versions, which are in `fresh` by role until they are stored.

    `bodies`: the newest of each role, none for a fleet that begins. `extra`: signers whose keys lie elsewhere.
    """

    def __init__(
        self,
        bodies: Mapping[Role, bytes],
        keys: KeyFolder,
        now: Callable[[], float],
        extra: Iterable[CryptoSigner] = (),
    ) -> None:
        """Raises SignatureError for metadata that cannot be read."""
        self._keys, self._now, self._extra = keys, now, tuple(extra)
        self._signed: dict[Role, Metadata[Any]] = {role: read_metadata(body, role) for role, body in bodies.items()}
        self.bodies: dict[Role, bytes] = dict(bodies)
        self.fresh: dict[Role, bytes] = {}

    @property
    def root(self) -> Root:
        found: Root = self._signed["root"].signed
        return found

    def keys_of(self, role: Role) -> list[Key]:
        return [self.root.get_key(key) for key in self.root.roles[role].keyids]

    def version(self, role: Role) -> int:
        found: int = self._signed[role].signed.version
        return found

    def ends_at(self, role: Role) -> float:
        found: datetime = self._signed[role].signed.expires
        return found.timestamp()

    def has_key(self, role: Role) -> bool:
        """Whether enough of the role's keys are at hand."""
        held = {signer.public_key.keyid for signer in (*self._keys.signers(role, self.keys_of(role)), *self._extra)}
        return len(held & set(self.root.roles[role].keyids)) >= self.root.roles[role].threshold

    def targets(self) -> frozenset[str]:
        """Their paths."""
        return frozenset(self._signed["targets"].signed.targets)

    def begin(self, signers: Mapping[Role, CryptoSigner]) -> None:
        """Everything's first version; those of 1 are replaced before they are seen."""
        root = Root(version=1, expires=self._until(LIFETIME_DAYS["root"]))
        for role, signer in signers.items():
            root.add_key(signer.public_key, role)
        self._extra = (*self._extra, *signers.values())
        self._signed["root"] = Metadata(root)
        self._signed["targets"] = Metadata(Targets(version=1, expires=self._until(0)))
        self._signed["snapshot"] = Metadata(Snapshot(version=1, expires=self._until(0)))
        self._signed["timestamp"] = Metadata(Timestamp(version=1, expires=self._until(0)))
        self._seal("root", self._signed["root"])
        self.publish(self.draft("targets"))

    def draft(self, role: Role, days: float | None = None) -> Metadata[Any]:
        """The next version with what it says now, living `days` from now, signed by the keys that are at hand."""
        return self._sign(role, self._next(role, days))

    def _next(self, role: Role, days: float | None = None) -> Metadata[Any]:
        made = copy.deepcopy(self._signed[role])
        made.signatures.clear()
        made.signed.version += 1
        if role != "root":
            made.signed.version = max(made.signed.version, int(self._now()))
        made.signed.expires = self._until(LIFETIME_DAYS[role] if days is None else days)
        return made

    def _sign(self, role: Role, made: Metadata[Any]) -> Metadata[Any]:
        """By the keys that are at hand: for a root, those of the one before it too."""
        wanted = {key.keyid: key for key in self.keys_of(role)}
        if role == "root":
            wanted |= {key: made.signed.keys[key] for key in made.signed.roles["root"].keyids}
        own = self._keys.signers(role, wanted.values())
        for signer in {one.public_key.keyid: one for one in (*own, *self._extra)}.values():
            if signer.public_key.keyid in wanted:
                made.sign(signer, append=True)
        return made

    def lacks(self, role: Role, made: Metadata[Any]) -> str:
        """ "" where it is signed by enough keys, else which are missing, in words."""
        payload, wanted = made.signed_bytes, [("", self.root)]
        if role == "root" and made.signed.version > self.root.version:
            wanted.append(("its own ", made.signed))
        for whose, root in wanted:
            result = root.get_verification_result(role, payload, made.signatures)
            if not result:
                keys = ", ".join(sorted(key[:16] for key in result.unsigned))
                return f"{whose}{role} keys must sign: {result.missing} more of {keys}"
        return ""

    def publish(self, *drafts: Metadata[Any]) -> None:
        """They count from now on, with a snapshot and a timestamp of them. Raises SignatureError where one is not
        signed by enough keys, ConflictError where another was published since it was drafted."""
        for made in drafts:
            role = made.signed.type
            self._check_next(role, made)
            self._seal(role, made)
        if any(made.signed.type == "root" for made in drafts):
            self._renew_after_root()
        snapshot = self._next("snapshot")
        targets = self.bodies["targets"]
        snapshot.signed.meta = {"targets.json": MetaFile.from_data(self.version("targets"), targets, ["sha256"])}
        self._seal("snapshot", snapshot)
        timestamp = self._next("timestamp")
        sealed = self.bodies["snapshot"]
        timestamp.signed.snapshot_meta = MetaFile.from_data(self.version("snapshot"), sealed, ["sha256"])
        self._seal("timestamp", timestamp)

    def _check_next(self, role: Role, made: Metadata[Any]) -> None:
        now = self.version(role)
        if made.signed.version <= now or (role == "root" and made.signed.version != now + 1):
            raise ConflictError(
                f"{role} version {made.signed.version} was drafted before version {now} was published",
                hint="draft it again",
            )
        lacking = self.lacks(role, made)
        if lacking:
            raise SignatureError(lacking, hint="edgekit fleet keys sign FILE --key KEY, where the key is")

    def _renew_after_root(self) -> None:
        """Targets that the new root's keys do not vouch for are signed anew."""
        if self.lacks("targets", self._signed["targets"]):
            again = self.draft("targets")
            lacking = self.lacks("targets", again)
            if lacking:
                raise SignatureError(f"with the new root, {lacking}", hint="give that key as well: --key FILE")
            self._seal("targets", again)

    def change_targets(self, targets: Mapping[str, TargetFile | None], days: float | None = None) -> Metadata[Any]:
        """A draft in which these are added, or taken away where None."""
        made = self._next("targets", days)
        for path, target in targets.items():
            if target is None:
                made.signed.targets.pop(path, None)
            else:
                made.signed.targets[path] = target
        return self._sign("targets", made)

    def change_key(self, role: Role, key: Key) -> Metadata[Any]:
        """A draft of a root in which `key` is the role's only one."""
        made = self._next("root")
        for before in list(made.signed.roles[role].keyids):
            made.signed.revoke_key(before, role)
        made.signed.add_key(key, role)
        return self._sign("root", made)

    def due(self) -> tuple[Role, ...]:
        """Roles whose life is more than half over."""
        now = self._now()
        return tuple(role for role in ROLES if self.ends_at(role) - now < (1 - RENEW_AT) * 86_400 * LIFETIME_DAYS[role])

    def _seal(self, role: Role, made: Metadata[Any]) -> None:
        self._signed[role] = made if made.signatures else self._sign(role, made)
        lacking = self.lacks(role, self._signed[role])
        if lacking:
            raise SignatureError(lacking, hint="is the key where it was? edgekit fleet keys lists them")
        self.fresh[role] = self.bodies[role] = to_bytes(self._signed[role])

    def _until(self, days: float) -> datetime:
        return datetime.fromtimestamp(int(self._now()), timezone.utc) + timedelta(days=days)


def read_metadata(body: bytes, role: Role | None = None) -> Metadata[Any]:
    """Raises SignatureError for something else."""
    try:
        made: Metadata[Any] = Metadata.from_bytes(body)
    except (DeserializationError, RepositoryError, UnsignedMetadataError) as error:
        raise SignatureError(f"no signed metadata: {error}", hint="restore it, or draft it again") from error
    if role is not None and not isinstance(made.signed, KINDS[role]):
        raise SignatureError(f"metadata of the role {made.signed.type}, wanted {role}", hint="draft it again")
    return made


def to_bytes(made: Metadata[Any]) -> bytes:
    return made.to_bytes(JSONSerializer(compact=True))
