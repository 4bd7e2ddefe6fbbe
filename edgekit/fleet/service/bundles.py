"""Bundles: taken in, listed, found by a reference, let go of."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from edgekit.bundle import Bundle
from edgekit.bundle.layout import MANIFEST, REPORT_HTML, Index, parse_index
from edgekit.errors import AbsentError, ConflictError, UsageError
from edgekit.fleet.protocol.bundles import BundleView, FileView, Missing, Offer, Received, Wanted
from edgekit.fleet.protocol.wire import Page
from edgekit.fleet.registry.intake import open_offered, read_offer
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.people import Actor
from edgekit.fleet.service.trust import Trust
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import BundleFile, BundleRow, Device, Group, Rollout, RolloutDevice

AT_ONCE = 50  # files that are removed while others wait
LOOSE_S = 86_400.0  # an upload that broke off may go on for a day


@retried
class Bundles:
    def __init__(self, core: Core, trust: Trust) -> None:
        self._core, self._trust = core, trust

    def offer(self, actor: Actor, offer: Offer) -> Wanted:
        """Raises BundleError for an index that cannot be."""
        actor.need("operator")
        index, blobs = read_offer(offer), self._core.blobs
        missing, held, seen = [], 0, set()
        for path, entry in sorted(index.files.items()):
            if entry.sha256 in seen or blobs.size(entry.sha256) is not None:
                held += entry.size_bytes
                continue
            seen.add(entry.sha256)
            received = blobs.received(entry.sha256)
            missing.append(Missing(sha256=entry.sha256, path=path, size_bytes=entry.size_bytes, received=received))
        return Wanted(digest=index.files[MANIFEST].sha256, missing=tuple(missing), held=held)

    def receive(self, actor: Actor, sha256: str, at: int, size: int, chunks: Iterable[bytes]) -> Received:
        """Raises like `Blobs.append`."""
        actor.need("operator")
        here = self._core.blobs.append(sha256, at, size, chunks)
        return Received(received=here, complete=here == size)

    def accept(self, actor: Actor, offer: Offer) -> BundleView:
        """Verifies everything first. The same bundle again changes nothing. Raises like `open_offered`."""
        actor.need("operator")
        core, index = self._core, read_offer(offer)
        digest = index.files[MANIFEST].sha256
        with tempfile.TemporaryDirectory(dir=core.folder, prefix="accept-") as folder:
            place = Path(folder) / "bundle"
            with open_offered(offer, index, core.blobs, place, core.key) as bundle, core.database.write() as session:
                self._need_files(index)
                if session.get(BundleRow, digest) is None:
                    row = self._row(session, actor, offer, index, bundle)
                    session.add(row)
                    session.flush()
                    session.add_all(_files(digest, index))
                    signed = self._trust.admit(session, digest, offer.index, offer.signature)
                    said = {"name": row.name, "size_bytes": row.size_bytes, "signed": signed}
                    core.note(session, actor.name, "bundle.push", digest, **said)
        return self.get(digest)

    def _need_files(self, index: Index) -> None:
        """Within the transaction behind which `collect` waits: what it has removed since they were verified. Raises
        UsageError."""
        for path, entry in index.files.items():
            if self._core.blobs.size(entry.sha256) is None:
                raise UsageError(f"{path} ({entry.sha256[:16]}) is not here any more", hint="push again: it goes on")

    def _row(self, session: Session, actor: Actor, offer: Offer, index: Index, bundle: Bundle) -> BundleRow:
        contents = {entry.sha256: entry.size_bytes for entry in index.files.values()}
        known = set(session.scalars(select(BundleFile.sha256).where(BundleFile.sha256.in_(contents))))
        manifest = bundle.manifest
        return BundleRow(
            digest=bundle.digest,
            name=manifest.name,
            task=manifest.task,
            device=manifest.device,
            tiers=sorted({part.tier for part in manifest.parts}),
            size_bytes=sum(entry.size_bytes for entry in index.files.values()),
            new_bytes=sum(size for sha256, size in contents.items() if sha256 not in known),
            index=offer.index,
            signature=offer.signature,
            signed_by=bundle.signed_by or "",
            pushed_at=self._core.now(),
            pushed_by=actor.name,
        )

    def find(self, reference: str) -> str:
        """The digest of `name@sha256:abc...`, `sha256:abc...`, a digest or the front of one (8 digits at least), or
        `name` for the newest of it. Raises AbsentError, UsageError where several fit."""
        name, _, text = reference.rpartition("@")
        front = text.removeprefix("sha256:").removesuffix("...")
        is_digest = len(front) >= 8 and all(letter in "0123456789abcdef" for letter in front)
        query = select(BundleRow.digest).order_by(BundleRow.pushed_at.desc(), BundleRow.digest)
        if is_digest:
            query = query.where(BundleRow.digest.startswith(front, autoescape=True))
            if name:
                query = query.where(BundleRow.name == name)
        else:
            query = query.where(BundleRow.name == reference)
        with self._core.database.read() as session:
            found = list(session.scalars(query.limit(2)))
        if not found:
            raise AbsentError(f"no bundle {reference}", hint="edgekit fleet bundles lists them")
        if is_digest and len(found) > 1:
            raise UsageError(f"several bundles begin with {front}", hint="give more digits")
        return found[0]

    def get(self, digest: str) -> BundleView:
        """Raises AbsentError."""
        with self._core.database.read() as session:
            row = _bundle(session, digest)
            files = session.scalars(select(BundleFile).where(BundleFile.bundle == digest).order_by(BundleFile.path))
            shown = tuple(FileView(path=one.path, sha256=one.sha256, size_bytes=one.size_bytes) for one in files)
            return _view(row, _running(session).get(digest, 0)).model_copy(update={"files": shown})

    def list(self, after: str | None = None, limit: int = 100) -> Page[BundleView]:
        """The newest first."""
        query = select(BundleRow).order_by(BundleRow.pushed_at.desc(), BundleRow.digest).limit(limit + 1)
        with self._core.database.read() as session:
            if after is not None:
                last = _bundle(session, after)
                later = (BundleRow.pushed_at == last.pushed_at) & (BundleRow.digest > last.digest)
                query = query.where(or_(BundleRow.pushed_at < last.pushed_at, later))
            running = _running(session)
            found = [_view(row, running.get(row.digest, 0)) for row in session.scalars(query)]
        shown, following = paged(found, limit, lambda view: str(view.digest))
        return Page[BundleView](items=tuple(shown), next=following)

    def index(self, digest: str) -> Offer:
        """Raises AbsentError."""
        with self._core.database.read() as session:
            row = _bundle(session, digest)
            return Offer(index=row.index, signature=row.signature)

    def report(self, digest: str) -> bytes:
        """The page that `edgekit export` wrote. Raises AbsentError."""
        index = parse_index(self.index(digest).index.encode(), digest)
        return b"".join(self._core.blobs.read(index.files[REPORT_HTML].sha256))

    def remove(self, actor: Actor, digest: str) -> None:
        """Its files go with the next `collect`. Raises AbsentError, ConflictError where something needs it."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = _bundle(session, digest)
            use = _use(session, digest)
            if use:
                raise ConflictError(f"{digest[:16]} is in use: {use}", hint="roll another one out first")
            session.delete(row)
            self._trust.withdraw(session, digest)
            self._core.note(session, actor.name, "bundle.remove", digest, name=row.name)

    def prune(self, actor: Actor, keep: int, name: str = "") -> tuple[str, ...]:
        """Removes bundles that nothing runs, wants or goes back to, but the `keep` newest of each name; the digests
        of those that went."""
        actor.need("operator")
        query = select(BundleRow.digest, BundleRow.name).order_by(BundleRow.pushed_at.desc(), BundleRow.digest)
        with self._core.database.read() as session:
            found = session.execute(query.where(BundleRow.name == name) if name else query).all()
        newest: Counter[str] = Counter()
        gone = []
        for digest, own in found:
            newest[own] += 1
            if newest[own] <= keep:
                continue
            with suppress(AbsentError, ConflictError):  # somebody else removed it, or something needs it
                self.remove(actor, digest)
                gone.append(digest)
        self.collect()
        return tuple(gone)

    def collect(self, unchanged_s: float = LOOSE_S) -> int:
        """Removes files that no bundle holds and that have not changed for so long: what comes in just now belongs to a
        bundle that is not accepted yet. How many."""
        with self._core.database.read() as session:
            held = set(session.scalars(select(BundleFile.sha256).distinct()))
        since = self._core.now() - unchanged_s
        loose = sorted({sha256 for sha256, changed_at in self._core.blobs.changed() if changed_at <= since} - held)
        return sum(self._let_go(loose[start : start + AT_ONCE]) for start in range(0, len(loose), AT_ONCE))

    def _let_go(self, loose: Sequence[str]) -> int:
        """Of files, those that no bundle holds now: whoever accepts one waits meanwhile, or is waited for."""
        with self._core.database.write() as session:
            taken = set(session.scalars(select(BundleFile.sha256).where(BundleFile.sha256.in_(loose))))
            gone = [sha256 for sha256 in loose if sha256 not in taken]
            for sha256 in gone:
                self._core.blobs.remove(sha256)
        return len(gone)


def _bundle(session: Session, digest: str) -> BundleRow:
    row = session.get(BundleRow, digest)
    if row is None:
        raise AbsentError(f"no bundle {digest[:16]}", hint="edgekit fleet bundles lists them")
    return row


def _use(session: Session, digest: str) -> str:
    """What needs it, in words; "" where nothing does."""
    asked = or_(Device.wanted == digest, Device.running == digest)
    devices = session.scalar(select(func.count()).select_from(Device).where(asked))
    if devices:
        return f"{devices} device{'s' * (devices != 1)} run or want it"
    back = select(Rollout.id).join(RolloutDevice, RolloutDevice.rollout == Rollout.id)
    for query, what in (
        (select(Rollout.id).where(Rollout.bundle == digest), "a rollout goes on with it"),
        (back.where(RolloutDevice.previous == digest), "a rollout that goes on may go back to it"),
    ):
        if session.scalar(query.where(Rollout.active.is_not(None)).limit(1)):
            return what
    group = session.scalar(select(Group.name).where(Group.wanted == digest).limit(1))
    return f"who joins the group {group} gets it" if group is not None else ""


def _running(session: Session) -> dict[str, int]:
    counted = session.execute(select(Device.running, func.count()).group_by(Device.running))
    return {digest: count for digest, count in counted if digest is not None}


def _files(digest: str, index: Index) -> list[BundleFile]:
    return [
        BundleFile(bundle=digest, path=path, sha256=entry.sha256, size_bytes=entry.size_bytes)
        for path, entry in index.files.items()
    ]


def _view(row: BundleRow, running: int) -> BundleView:
    return BundleView(
        digest=row.digest,
        name=row.name,
        task=row.task,
        device=row.device,
        tiers=tuple(row.tiers),
        size_bytes=row.size_bytes,
        new_bytes=row.new_bytes,
        pushed_at=row.pushed_at,
        pushed_by=row.pushed_by,
        signed_by=row.signed_by,
        running=running,
    )
