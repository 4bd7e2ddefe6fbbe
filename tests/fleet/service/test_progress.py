from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService, progress
from edgekit.fleet.service.people import Actor
from tests.fleet.conftest import SettableClock
from tests.fleet.service.test_glance import statements
from tests.fleet.web.scene import enroll, follow, group, push, say


def test_stages_are_counted_and_failures_named_with_their_reasons(
    fleet: FleetService, admin: Actor, tmp_path: Path, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = push(fleet, tmp_path).digest
    devices = [enroll(fleet, f"pi-{place}", board="rpi4") for place in range(4)]
    group(fleet)
    follow(fleet, *devices)
    order = RolloutOrder(bundle=digest, group="pi", steps=(0.75, 1.0), soak_s=0, max_wrong=4)
    started = fleet.rollouts.start(admin, order)
    fleet.rollouts.advance()
    asked = [device for device in devices if fleet.devices.desired(device).bundle is not None]
    assert len(asked) == 3
    clock.advance(1)
    follow(fleet, asked[0])
    for device in asked[1:]:
        say(fleet, device, Slot(candidate=digest, phase="failed", reason="2 golden answers differ"))
    fleet.rollouts.advance()
    found = fleet.progress.of(started.id)
    assert (found.stages[0].devices, dict(found.stages[0].states)) == (3, {"right": 1, "wrong": 2})
    assert found.stages[1].devices == 1 and found.failed == 2
    assert [one.state for one in found.failures] == ["wrong", "wrong"]
    assert {one.reason for one in found.failures} == {"2 golden answers differ"}
    assert list(found.failures) == sorted(found.failures, key=lambda one: one.device)
    assert fleet.progress.failing([started.id]) == {started.id: 2} and fleet.progress.failing([]) == {}
    monkeypatch.setattr(progress, "SHOWN_FAILURES", 1)
    again = fleet.progress.of(started.id)
    assert len(again.failures) == 1 and again.failed == 2


def test_who_failed_stays_named_with_the_reason_when_it_has_gone_back(
    fleet: FleetService, admin: Actor, tmp_path: Path, clock: SettableClock
) -> None:
    digest = push(fleet, tmp_path).digest
    device = enroll(fleet, "pi-1", board="rpi4")
    group(fleet)
    follow(fleet, device)
    started = fleet.rollouts.start(admin, RolloutOrder(bundle=digest, group="pi", steps=(1.0,), soak_s=0))
    fleet.rollouts.advance()
    clock.advance(1)
    say(fleet, device, Slot(candidate=digest, phase="failed", reason="2 golden answers differ"))
    fleet.rollouts.advance()
    clock.advance(1)
    say(fleet, device, Slot())
    fleet.rollouts.advance()
    assert fleet.rollouts.get(started.id).state == "rolled-back"
    (failure,) = fleet.progress.of(started.id).failures
    assert (failure.device, failure.state, failure.reason) == ("pi-1", "reverted", "2 golden answers differ")
    assert fleet.progress.failing([started.id]) == {started.id: 1}


def test_the_progress_of_nothing_is_absent(fleet: FleetService) -> None:
    with pytest.raises(AbsentError):
        fleet.progress.of("0" * 32)


def test_rollouts_are_listed_with_as_many_queries_as_one(
    fleet: FleetService, admin: Actor, tmp_path: Path, clock: SettableClock
) -> None:
    digest = push(fleet, tmp_path).digest
    asked = []
    for place in range(3):
        enroll(fleet, f"pi-{place}", board=f"b{place}")
        group(fleet, f"g{place}", f"board=b{place}")
        fleet.rollouts.start(admin, RolloutOrder(bundle=digest, group=f"g{place}"))
        clock.advance(1)
        with statements(fleet) as found:
            listed = fleet.rollouts.list().items
        asked.append(len(found))
        assert [one.group for one in listed] == [f"g{at}" for at in range(place, -1, -1)]
        assert all(one.tally.waiting == 1 and one.name == "net" for one in listed)
    assert len(set(asked)) == 1
