"""Many simulated devices against a real service, over real HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from edgekit.errors import AuthenticationError, UnreachableError
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.rollouts import ENDED, RolloutOrder, RolloutView
from edgekit.fleet.simulation.actor import Part
from edgekit.fleet.simulation.scene import Bad, Scene, Simulation, play
from edgekit.fleet.store.tables import Device, WindowRow
from tests.fleet.acting import ADMIN, push
from tests.fleet.bundles import make_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleet.simulation.conftest import Served

OLD = "a" * 64
QUICK = Part(interval_s=0.4, update_s=0.2, crash_s=0.2)


def simulation(served: Served, devices: int, seconds: float, **others: object) -> Simulation:
    return Simulation(served.url, served.invite(devices, site="sim"), devices, seconds, part=QUICK, **others)  # type: ignore[arg-type]


def test_fifty_devices_enrol_and_every_window_that_they_were_told_is_stored_is_there(served: Served) -> None:
    outcome = play(simulation(served, 50, 4.0, running=OLD))
    assert (outcome.devices, outcome.enrolled, outcome.errors) == (50, 50, {})
    assert outcome.syncs >= 150 and outcome.windows >= 50
    assert outcome.running == {OLD: 50}
    with served.service.database.read() as session:
        there = session.scalar(select(func.count()).select_from(WindowRow)) or 0
        assert session.scalar(select(func.count()).select_from(Device).where(Device.running == OLD)) == 50
    assert outcome.windows <= there <= outcome.windows + 50  # the last answers did not arrive
    assert 0 < outcome.percentile_ms(0.5) <= outcome.percentile_ms(0.99)


def ended(served: Served, order: RolloutOrder) -> RolloutView:
    """Starts it, and waits for its end."""
    view = served.service.rollouts.start(ADMIN, order)
    for _ in range(400):
        view = served.service.rollouts.get(view.id)
        if view.state in ENDED:
            break
        time.sleep(0.05)
    return view


def test_a_bundle_that_crashes_stays_with_the_canary_which_falls_back_by_itself(served: Served, tmp_path: Path) -> None:
    service = served.service
    good, bad = (
        push(service, make_bundle(tmp_path / name, name=name, scale=scale, as_directory=True)).digest
        for name, scale in (("good", 2.0), ("bad", 3.0))
    )
    service.groups.put(ADMIN, "sim", GroupOrder(selector="site=sim"))
    scene = Scene(simulation(served, 20, 25.0, bad=Bad("crash", bad)))
    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(lambda: asyncio.run(scene.play()))
        while scene.outcome.enrolled < 20 and not playing.done():
            time.sleep(0.01)
        quick = {"group": "sim", "soak_s": 0.0, "timeout_s": 20.0}
        assert ended(served, RolloutOrder(bundle=good, steps=(1.0,), **quick)).state == "complete"
        view = ended(served, RolloutOrder(bundle=bad, steps=(0.1, 1.0), **quick))
        scene.stop()
        outcome = playing.result(30)
    assert view.state == "rolled-back" and "signal 11" in view.reason
    assert outcome.errors == {} and outcome.downloads == 2  # once for all devices
    assert len(outcome.ran[good]) == 20
    assert outcome.bad_ran == len(outcome.ran[bad]) == outcome.returned == 2
    assert outcome.running == {good: 20}


def test_a_backlog_is_forwarded_in_full_messages_as_fast_as_it_is_taken(served: Served) -> None:
    outcome = play(simulation(served, 5, 3.0, running=OLD, backlog=200))
    assert outcome.windows >= 5 * 200 and outcome.lost_windows == 0
    with served.service.database.read() as session:
        assert (session.scalar(select(func.count()).select_from(WindowRow)) or 0) >= 1000


def test_a_call_that_is_held_ends_with_new_orders(served: Served) -> None:
    part = dataclasses.replace(QUICK, wait_s=5.0)
    outcome = play(dataclasses.replace(simulation(served, 5, 3.0, running=OLD), part=part))
    assert outcome.errors == {} and outcome.syncs <= 5  # held calls do not come back by themselves within the time


def test_over_tls_each_device_has_a_certificate_of_its_own(served_tls: Served) -> None:
    authority = served_tls.service.core.authority.certificate_path
    outcome = play(simulation(served_tls, 6, 2.0, running=OLD, authority=authority))
    assert outcome.enrolled == 6 and outcome.errors == {} and outcome.syncs >= 6


def test_an_invitation_that_does_not_count_and_a_service_that_is_not_there_are_told(served: Served) -> None:
    with pytest.raises(AuthenticationError, match="token"):
        play(Simulation(served.url, "eki_wrong", 3, 1.0))
    with pytest.raises(UnreachableError):
        play(Simulation("http://127.0.0.1:9", served.invite(1), 1, 1.0))


def test_devices_without_a_network_forward_what_they_saw_later(served: Served) -> None:
    part = dataclasses.replace(QUICK, offline=0.5, offline_s=0.8)
    outcome = play(dataclasses.replace(simulation(served, 10, 4.0, running=OLD), part=part))
    assert outcome.errors == {} and outcome.windows > 0
