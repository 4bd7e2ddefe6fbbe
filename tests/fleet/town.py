"""A service with devices that do as they are told, in virtual time; for tests of rollouts, plans and insights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.bundle.manifest import Tier
from edgekit.fleet.protocol.agents import Desired, Slot, Sync
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.rollouts import ENDED, RolloutOrder, RolloutView
from edgekit.fleet.protocol.windows import MAX_WINDOWS, Health, LinkSeen, Window
from edgekit.fleet.protocol.wire import new_identifier
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device
from edgekit.fleet.telemetry.histogram import histogram_of
from tests.fleet import acting
from tests.fleet.conftest import SettableClock

ADA = Actor("ada", "admin")


def push(service: FleetService, folder: Path) -> str:
    """A bundle that lies there as a folder; its digest."""
    return acting.push(service, folder).digest


@dataclass
class Thing:
    """`answers`: digest -> whether its golden answers are right there; all others are. `windows`: what it saw, to be
    sent with the next sync."""

    id: str
    online: bool = True
    running: str | None = None
    answers: dict[str, bool] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    sequence: int = 0
    ever_ran: set[str] = field(default_factory=set)
    failed: str | None = None


class Town:
    def __init__(self, service: FleetService, clock: SettableClock) -> None:
        self.service, self.clock = service, clock
        self.things: dict[str, Thing] = {}
        self._turn = threading.Lock()  # a test may let devices follow in a thread of their own

    def add(self, name: str, tier: Tier = "device", profile: str = "", **labels: str) -> Thing:
        identifier = new_identifier()
        facts = {"boot": identifier, "agent": "0.1.0", "system": "Linux", "machine": "aarch64", "tier": tier}
        with self.service.database.write() as session:
            session.add(
                Device(
                    id=identifier,
                    name=name,
                    tier=tier,
                    standing="active",
                    labels=labels,
                    token_hash=identifier,
                    certificate_serial=identifier,
                    certificate_ends_at=0.0,
                    enrolled_at=self.clock(),
                    boot=identifier,
                    facts={**facts, "profile": profile},
                    slot=Slot().model_dump(mode="json"),
                    kept=[],
                    taken=-1,
                    generation=1,
                    changed_tick=self.service.database.tick(session),
                    version=1,
                )
            )
        self.things[name] = Thing(identifier)
        return self.things[name]

    def group(self, name: str, selector: str, **settings: float) -> None:
        self.service.groups.put(ADA, name, GroupOrder.model_validate({"selector": selector, **settings}))

    def device(self, name: str) -> Device:
        with self.service.database.read() as session:
            found = session.get(Device, self.things[name].id)
        assert found is not None
        return found

    def wanted(self) -> dict[str, str | None]:
        return {name: self.device(name).wanted for name in self.things}

    def window(self, name: str, digest: str, **saw: object) -> None:
        """The device saw this in the 30 s up to now."""
        with self._turn:
            self.things[name].windows.append(self.seen(name, digest, **saw))

    def seen(
        self,
        name: str,
        digest: str,
        *,
        answered: int = 0,
        latencies: Sequence[float] = (),
        temperature: float | None = None,
        link: tuple[float, float, float] | None = None,
        **more: object,
    ) -> Window:
        thing = self.things[name]
        thing.sequence += 1
        fields = {
            "sequence": thing.sequence,
            "started_at": self.clock() - 30,
            "seconds": 30.0,
            "digest": digest,
            "answered": answered or len(latencies),
            "latency": histogram_of(latencies),
            "health": Health(temperature_c=temperature),
            "link": None if link is None else LinkSeen(bandwidth_mbps=link[0], rtt_ms=link[1], loss=link[2]),
        }
        return Window.model_validate({**fields, **more})

    def follow(self, names: Collection[str] | None = None) -> None:
        """Each says what it is, hears its orders, follows them, and says so."""
        with self._turn:
            there = [thing for name, thing in self.things.items() if thing.online and (names is None or name in names)]
            self._sync(there)
            moved = [thing for thing in there if self._do(thing, self.service.devices.desired(thing.id))]
            self._sync(moved)

    def everything_is_stored(self) -> bool:
        with self._turn:
            return all(self.device(name).taken == (thing.sequence or -1) for name, thing in self.things.items())

    def _sync(self, things: Sequence[Thing]) -> None:
        calls = []
        for thing in things:
            windows, thing.windows = thing.windows, []
            for start in range(0, max(1, len(windows)), MAX_WINDOWS):
                some = tuple(windows[start : start + MAX_WINDOWS])
                calls.append(self.service.devices.intake.put(thing.id, Sync(slot=self._slot(thing), windows=some)))
        for call in calls:
            call.result(30)

    def _do(self, thing: Thing, desired: Desired) -> bool:
        """Whether something has changed there."""
        before = (thing.running, thing.failed)
        wanted = None if desired.bundle is None else desired.bundle.digest
        if wanted is not None and wanted != thing.running:
            thing.ever_ran.add(wanted)
        refused = wanted is not None and wanted != thing.running and not thing.answers.get(wanted, True)
        thing.failed = wanted if refused else None
        if not refused:
            thing.running = wanted
        return before != (thing.running, thing.failed)

    def _slot(self, thing: Thing) -> Slot:
        golden = {"checked": 4, "right": 4} if thing.running else {}
        if thing.failed is not None:
            reason = "its golden answers are wrong"
            return Slot(running=thing.running, candidate=thing.failed, phase="failed", reason=reason, **golden)
        return Slot(running=thing.running, **golden)

    def start(self, bundle: str, group: str, **changes: object) -> RolloutView:
        fields: dict[str, object] = {"bundle": bundle, "group": group, "steps": (1.0,), "soak_s": 0, "timeout_s": 300}
        return self.service.rollouts.start(ADA, RolloutOrder.model_validate({**fields, **changes}))

    def carry(self, most: int = 60, seconds: float = 30.0, before: Callable[[], None] = lambda: None) -> RolloutView:
        """The latest rollout to where it ends or pauses."""
        for _ in range(most):
            view = self.service.rollouts.get("latest")
            if view.state in ENDED or view.state == "paused":
                return view
            self.step(seconds, before)
        raise AssertionError(f"the rollout goes on: {self.service.rollouts.get('latest')}")

    def step(self, seconds: float = 30.0, before: Callable[[], None] = lambda: None) -> None:
        self.clock.advance(seconds)
        before()
        self.follow()
        self.service.rollouts.advance()

    def roll_out(self, bundle: str, group: str, **changes: object) -> RolloutView:
        self.start(bundle, group, **changes)
        return self.carry()
