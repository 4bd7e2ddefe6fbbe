"""Rollouts: started, paused, resumed, turned back, and carried on by the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, ConflictError, UsageError
from edgekit.fleet.protocol.rollouts import RolloutOrder, RolloutState, RolloutView
from edgekit.fleet.protocol.wire import Page, new_identifier
from edgekit.fleet.rollouts.guards import parse_guards
from edgekit.fleet.rollouts.skew import serves
from edgekit.fleet.rollouts.stages import Stage, counted, plan_stages
from edgekit.fleet.service.belonging import Belonging
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.groups import members
from edgekit.fleet.service.manifests import Manifests
from edgekit.fleet.service.people import Actor
from edgekit.fleet.service.rollout_rows import tier_of, view_of, views_of
from edgekit.fleet.service.rollout_steps import AT_ONCE, Steps
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import BundleRow, Device, Group, Rollout, RolloutDevice

COMPATIBLE = "its tails answer for the old bundle too"


@retried
class Rollouts:
    """`need_signed`: raises ConflictError for a bundle that no device would take."""

    def __init__(self, core: Core, need_signed: Callable[[Session, str], None] = lambda session, digest: None) -> None:
        self._core, self._need_signed = core, need_signed
        self.manifests = Manifests(core)
        self._steps, self._belonging = Steps(core), Belonging(core)

    def start(self, actor: Actor, order: RolloutOrder) -> RolloutView:
        """Raises AbsentError for a bundle or group, UsageError for guards that cannot be judged, for a group that holds
        nobody and for a bundle that has nothing for one of its tiers, ConflictError while another rollout goes on in
        the group, or in one that shares a device with it."""
        actor.need("operator")
        core, now, identifier = self._core, self._core.now(), new_identifier()
        with core.database.write() as session:
            bundle = session.get(BundleRow, order.bundle)
            if bundle is None:
                raise AbsentError(f"no bundle {order.bundle[:16]}", hint="edgekit fleet push FILE.edgekit")
            self._need_signed(session, order.bundle)
            group = session.get(Group, order.group)
            if group is None:
                raise AbsentError(f"no group {order.group}", hint="edgekit fleet groups set NAME SELECTOR makes one")
            _check_guards(session, order.guards)
            devices = members(session, group.selector)
            if not devices:
                raise UsageError(
                    f"the group {order.group} holds no device: none is labelled {group.selector}",
                    hint="edgekit fleet devices label NAME KEY=VALUE, or edgekit fleet groups set another selector",
                )
            _check_tiers(bundle, devices)
            self._refuse_overlap(session, order.group, {device.id for device in devices})
            stages = self._stages(identifier, order, devices)
            session.add(_row(identifier, order, stages, actor, now))
            session.flush()
            before = _before(session, devices)
            session.add_all(
                RolloutDevice(rollout=identifier, device=device.id, state="waiting", previous=before[device.id])
                for device in devices
            )
            core.note(session, actor.name, "rollout.start", identifier, **order.model_dump(mode="json"))
        return self.get(identifier)

    def _stages(self, identifier: str, order: RolloutOrder, devices: Sequence[Device]) -> tuple[Stage, ...]:
        heads = {digest for one in devices if one.tier == "device" for digest in (one.running, one.wanted) if digest}
        servers = {one.wanted for one in devices if one.tier != "device"} - {None}
        tiers = {device.id: tier_of(device.tier) for device in devices}
        keeps = bool(servers - {order.bundle}) and not (heads and self._serves_all(order.bundle, heads))
        why_not = COMPATIBLE if servers - {order.bundle} else "nothing ran there"
        return plan_stages(identifier, order, tiers, keeps=keeps, why_not=why_not)

    def _serves_all(self, digest: str, heads: Iterable[str]) -> bool:
        """Whether servers with this bundle answer devices with each of the others."""
        try:
            ours = self.manifests.get(digest)
            return all(serves(ours, self.manifests.get(other)) for other in heads if other != digest)
        except AbsentError:
            return False  # nobody knows what the old one needs

    def _refuse_overlap(self, session: Session, group: str, wanted: set[str], but: str = "") -> None:
        busy = session.execute(
            select(RolloutDevice.device, Rollout.id, Rollout.group)
            .join(Rollout, Rollout.id == RolloutDevice.rollout)
            .where(Rollout.active.is_not(None), Rollout.id != but, RolloutDevice.state != "left")
        )
        for device, rollout, other in busy:
            if device in wanted or other == group:
                shared = "" if other == group else ", which shares devices"
                raise ConflictError(
                    f"the rollout {rollout[:8]} goes on in {other}{shared}", hint="let it end, or roll it back"
                )

    def pause(self, actor: Actor, key: str) -> RolloutView:
        """Raises AbsentError; ConflictError for one that does not run."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = self._turned(session, actor, key, "paused", ("running",))
            row.reason = "paused by " + actor.name
        return self.get(row.id)

    def resume(self, actor: Actor, key: str) -> RolloutView:
        """Devices that were lost are asked again; the step soaks anew. Raises like `pause`."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = self._turned(session, actor, key, "running", ("paused",))
            row.reason = ""
            lost = (RolloutDevice.rollout == row.id, RolloutDevice.state == "lost")
            session.execute(update(RolloutDevice).where(*lost).values(state="waiting"))
        return self.get(row.id)

    def roll_back(self, actor: Actor, key: str) -> RolloutView:
        """Of one that goes on, or that is complete: the devices get back what they ran before, step by step with the
        next `advance`. Raises like `pause`, and ConflictError where that is not there any more, or another rollout has
        changed it since."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = self._turned(session, actor, key, "rolling-back", ("running", "paused", "complete"))
            row.reason = "rolled back by " + actor.name
            if row.active is None:
                self._reopen(session, row)
        return self.get(row.id)

    def _turned(
        self, session: Session, actor: Actor, key: str, state: RolloutState, allowed: tuple[RolloutState, ...]
    ) -> Rollout:
        row = self._find(session, key)
        if row.state not in allowed:
            raise ConflictError(
                f"the rollout {row.id[:8]} is {row.state}, allowed {' or '.join(allowed)}",
                hint=f"edgekit fleet rollouts {row.id[:8]} shows it",
            )
        row.state, row.waits, row.settled_at = state, "", None
        row.version += 1
        self._core.note(session, actor.name, f"rollout.{state}", row.id)
        return row

    def _reopen(self, session: Session, row: Rollout) -> None:
        """A complete one, whose devices are to go back."""
        held = session.execute(
            select(RolloutDevice.device, RolloutDevice.previous, Device.wanted)
            .join(Device, Device.id == RolloutDevice.device)
            .where(RolloutDevice.rollout == row.id, RolloutDevice.asked_at.is_not(None))
        ).all()
        moved = [device for device, _, wanted in held if wanted != row.bundle]
        if len(moved) == len(held):
            raise ConflictError(
                f"every device of the rollout {row.id[:8]} got another bundle since",
                hint="roll that one back first, or roll out what they should run",
            )
        for start in range(0, len(moved), AT_ONCE):  # they are another rollout's now
            some = RolloutDevice.device.in_(moved[start : start + AT_ONCE])
            gone = update(RolloutDevice).where(RolloutDevice.rollout == row.id, some)
            session.execute(gone.values(state="left", asked_at=None))
        stay = {device: previous for device, previous, wanted in held if wanted == row.bundle}
        self._refuse_overlap(session, row.group, set(stay), but=row.id)
        before = {previous for previous in stay.values() if previous is not None}
        there = set(session.scalars(select(BundleRow.digest).where(BundleRow.digest.in_(before))))
        if before - there:
            raise ConflictError(
                f"the bundle {min(before - there)[:12]}, which ran before, is not in the registry any more",
                hint="push it again: edgekit fleet push FILE.edgekit",
            )
        row.active, row.ended_at = row.group, None
        group = session.get(Group, row.group)
        if group is not None and group.wanted == row.bundle and row.before is not None:
            group.wanted, group.wanted_at = row.before["wanted"], row.before["wanted_at"]

    def advance(self) -> int:
        """One step of every rollout that goes on; how many there are. Devices that joined a group get its bundle. Call
        it again and again, in one worker. Raises StoreError."""
        going = self._steps.advance()
        self._belonging.settle()
        return going

    def get(self, key: str) -> RolloutView:
        """By id, the front of one, or `latest`. Raises AbsentError."""
        with self._core.database.read() as session:
            return view_of(session, self._find(session, key))

    def list(self, after: str | None = None, limit: int = 50) -> Page[RolloutView]:
        """The newest first. Raises AbsentError for an `after` that is not there."""
        query = select(Rollout).order_by(Rollout.started_at.desc(), Rollout.id).limit(limit + 1)
        with self._core.database.read() as session:
            if after is not None:
                last = self._find(session, after)
                later = (Rollout.started_at == last.started_at) & (Rollout.id > last.id)
                query = query.where((Rollout.started_at < last.started_at) | later)
            found = views_of(session, session.scalars(query).all())
        shown, following = paged(found, limit, lambda view: str(view.id))
        return Page[RolloutView](items=tuple(shown), next=following)

    def _find(self, session: Session, key: str) -> Rollout:
        query = select(Rollout).order_by(Rollout.started_at.desc(), Rollout.id).limit(2)
        if key != "latest":
            query = query.where(Rollout.id.startswith(key, autoescape=True))
        found = session.scalars(query).all()
        if not found or (len(found) > 1 and key != "latest"):
            raise AbsentError(
                f"{'several rollouts begin with' if found else 'no rollout'} {key}",
                hint="edgekit fleet rollouts lists them",
            )
        return found[0]


def _before(session: Session, devices: Sequence[Device]) -> dict[str, str | None]:
    """Device -> what it goes back to: what it should run now; where nobody ever told it anything, what it does run."""
    found = {device.id: device.wanted for device in devices}
    untold = [device for device in devices if device.wanted is None and device.running is not None]
    if untold:
        told = set(session.scalars(select(RolloutDevice.device).where(RolloutDevice.asked_at.is_not(None)).distinct()))
        known = set(session.scalars(select(BundleRow.digest)))
        found |= {one.id: one.running for one in untold if one.id not in told and one.running in known}
    return found


def _check_guards(session: Session, text: str) -> None:
    """Raises UsageError."""
    guards = parse_guards(text)
    if any(guard.metric == "agreement" for guard in guards) and not session.scalar(
        select(func.max(Group.compare_share))
    ):
        raise UsageError(
            "a guard on agreement, but no group sends requests to be compared",
            hint="with the owner's consent: edgekit fleet groups set NAME SELECTOR --compare-share 0.01",
        )


def _check_tiers(bundle: BundleRow, devices: Sequence[Device]) -> None:
    """Raises UsageError."""
    for tier in ("device", "edge", "cloud"):
        count = sum(device.tier == tier for device in devices)
        if count and tier not in bundle.tiers:
            raise UsageError(
                f"{bundle.name} has no part for the {tier}, and the group holds {counted(count, 'device')} there",
                hint="choose another group, or export with a split",
            )


def _row(identifier: str, order: RolloutOrder, stages: Sequence[Stage], actor: Actor, now: float) -> Rollout:
    return Rollout(
        id=identifier,
        bundle=order.bundle,
        group=order.group,
        active=order.group,
        order=order.model_dump(mode="json"),
        stages=[asdict(stage) for stage in stages],
        state="running",
        stage=0,
        stage_at=now,
        settled_at=None,
        reason="",
        waits="",
        verdicts=[],
        started_at=now,
        started_by=actor.name,
        version=1,
    )
