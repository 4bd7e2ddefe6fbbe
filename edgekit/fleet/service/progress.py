"""How far rollouts have come, counted by the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from edgekit.errors import AbsentError
from edgekit.fleet.service.core import Core
from edgekit.fleet.store.tables import Device, Rollout, RolloutDevice

SHOWN_FAILURES = 50
_FAILED = RolloutDevice.failure.is_not(None) & (RolloutDevice.state != "right")


@dataclass(frozen=True)
class StageProgress:
    """`states`: how many of its devices are in which state."""

    text: str
    devices: int
    states: Counter[str]


@dataclass(frozen=True)
class Failure:
    """`state`: what the device is in now; it may have gone back since."""

    device: str
    state: str
    reason: str


@dataclass(frozen=True)
class RolloutProgress:
    """`failures`: the first of `failed`, by name."""

    stages: tuple[StageProgress, ...]
    failures: tuple[Failure, ...]
    failed: int


class Progress:
    def __init__(self, core: Core) -> None:
        self._core = core

    def of(self, rollout: str) -> RolloutProgress:
        """Raises AbsentError."""
        with self._core.database.read() as session:
            row = session.get(Rollout, rollout)
            if row is None:
                raise AbsentError(f"no rollout {rollout:.32}", hint="the page of rollouts lists them")
            columns = (RolloutDevice.device, RolloutDevice.state, _FAILED.label("failed"))
            members = session.execute(select(*columns).where(RolloutDevice.rollout == rollout)).all()
            failures = session.execute(
                select(Device.name, RolloutDevice.state, RolloutDevice.failure)
                .join(RolloutDevice, RolloutDevice.device == Device.id)
                .where(RolloutDevice.rollout == rollout, _FAILED)
                .order_by(Device.name)
                .limit(SHOWN_FAILURES)
            ).tuples()
            shown = tuple(Failure(name, state, said or "") for name, state, said in failures)
            stages = [(one["text"], one["devices"]) for one in row.stages]
        states = {one.device: one.state for one in members}
        failed = sum(bool(one.failed) for one in members)
        return RolloutProgress(tuple(_stage(text, devices, states) for text, devices in stages), shown, failed)

    def failing(self, rollouts: Sequence[str]) -> dict[str, int]:
        """Rollout -> devices that failed in it, one query for all."""
        query = (
            select(RolloutDevice.rollout, func.count())
            .where(RolloutDevice.rollout.in_(rollouts), _FAILED)
            .group_by(RolloutDevice.rollout)
        )
        with self._core.database.read() as session:
            return dict(session.execute(query).tuples().all())


def _stage(text: str, devices: Sequence[str], states: dict[str, str]) -> StageProgress:
    held = [states[device] for device in devices if device in states]
    return StageProgress(text, len(held), Counter(held))
