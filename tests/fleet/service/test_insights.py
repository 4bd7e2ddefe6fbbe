"""Suspects and drift over the database: found, told with their evidence, and forgotten when they are over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.fleet.service import FleetService, comparing, insights, memory
from edgekit.fleet.store.tables import BundleRow, Device, ReferenceRow
from edgekit.fleet.telemetry.histogram import histogram_of
from tests.fleet.conftest import SettableClock
from tests.fleet.town import ADA, Town

DIGEST, OTHER = "a" * 64, "b" * 64


def settle(fleet: FleetService, clock: SettableClock, count: int = 8) -> Town:
    """Devices that run a bundle which is only known by its row."""
    town = Town(fleet, clock)
    with fleet.database.write() as session:
        for digest in (DIGEST, OTHER):
            session.add(
                BundleRow(
                    digest=digest,
                    name="net",
                    task="x",
                    device="x",
                    tiers=["device"],
                    size_bytes=1,
                    new_bytes=1,
                    index="{}",
                    signature="",
                    signed_by="",
                    pushed_at=clock(),
                    pushed_by="ada",
                )
            )
    for index in range(count):
        town.add(f"pi-{index}").running = DIGEST
    with fleet.database.write() as session:
        for thing in town.things.values():
            row = session.get(Device, thing.id)
            assert row is not None
            row.wanted, row.changed_tick = DIGEST, fleet.database.tick(session)
    fleet.devices.directory.refresh()
    return town


@pytest.fixture
def town(tmp_path: Path, database_url: str, clock: SettableClock) -> Iterator[Town]:
    service = FleetService(tmp_path / "data", database_url, now=clock)
    yield settle(service, clock)
    service.close()


def report(town: Town, windows: int = 6, slow: dict[str, float] | None = None, **saw: object) -> None:
    source = np.random.default_rng(len(town.things) + windows)
    for _ in range(windows):
        town.clock.advance(30)
        for name in town.things:
            factor = (slow or {}).get(name, 1.0)
            town.window(name, DIGEST, latencies=(30 * factor * source.lognormal(0, 0.2, 30)).tolist(), **saw)
    town.follow()


def test_a_slow_member_is_found_on_either_database(fleet: FleetService, clock: SettableClock) -> None:
    town = settle(fleet, clock)
    report(town, slow={"pi-3": 2.5})
    fleet.insights.catch_up()
    found = fleet.insights.list().items
    assert {(one.name, one.kind, one.metric) for one in found} == {
        ("pi-3", "suspect", "p50"),
        ("pi-3", "suspect", "p95"),
    }
    worst = found[0]
    assert worst.peers == 7 and worst.value > 2 * worst.usual and worst.score >= found[1].score
    assert "its 7 peers'" in worst.text
    assert fleet.insights.count() == {"suspect": 1, "drift": 0}
    events = fleet.core.events(subject="pi-3").items
    assert {event.action for event in events} == {"insight.suspect"}


def test_what_is_over_is_forgotten_and_what_goes_on_keeps_its_beginning(town: Town) -> None:
    insights = town.service.insights
    report(town, slow={"pi-3": 2.5})
    insights.catch_up()
    since = insights.list().items[0].since
    report(town, slow={"pi-3": 2.5})
    insights.catch_up()
    again = insights.list().items[0]
    assert again.since == since < again.at
    report(town, windows=150)
    insights.catch_up()
    assert insights.list().items == ()


def test_each_window_is_read_once(town: Town) -> None:
    report(town)
    town.service.insights.catch_up()
    with town.service.database.read() as session:
        before = {row.device: row.content for row in session.query(ReferenceRow)}
    assert len(before) == 8
    town.service.insights.catch_up()
    with town.service.database.read() as session:
        assert {row.device: row.content for row in session.query(ReferenceRow)} == before
    assert all(content["now"]["answered"] > 100 for content in before.values())


def test_slices_take_everybody_whatever_their_size(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insights, "SLICE", 3)
    monkeypatch.setattr(insights, "MOST_WINDOWS", 10)
    report(town)
    town.service.insights.catch_up()
    with town.service.database.read() as session:
        held = [row.content["reference"]["seconds"] for row in session.query(ReferenceRow)]
    assert held == [180.0] * 8, "six windows of 30 s each, of each device"


def test_windows_of_another_bundle_are_left_out(town: Town) -> None:
    town.window("pi-0", OTHER, latencies=[900.0] * 100)
    report(town)
    town.service.insights.catch_up()
    with town.service.database.read() as session:
        row = session.get(ReferenceRow, (town.things["pi-0"].id, DIGEST))
    assert row is not None and row.content["now"]["answered"] < 185


def test_inputs_that_change_after_a_day_are_drift(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "REFERENCE_S", 3600.0)
    monkeypatch.setattr(memory, "REFERENCE_SAMPLES", 1000.0)
    source = np.random.default_rng(5)

    def live(hours: float, dark: bool) -> None:
        for _ in range(int(hours * 12)):
            town.clock.advance(300)
            for name in ("pi-0", "pi-1"):
                mean = 0.05 if dark and name == "pi-1" else 0.45
                values = source.lognormal(np.log(mean), 0.3, 300).tolist()
                town.window(name, DIGEST, answered=300, seconds=300.0, inputs=histogram_of(values))
        town.follow(["pi-0", "pi-1"])

    live(1.5, dark=False)
    live(3.0, dark=False)
    town.service.insights.catch_up()
    assert town.service.insights.list("drift").items == ()
    live(3.0, dark=True)
    town.service.insights.catch_up()
    (found,) = town.service.insights.list("drift").items
    assert (found.name, found.metric) == ("pi-1", "inputs")
    assert found.value >= found.usual and 0 < found.distance <= 1
    assert sum(found.now) == pytest.approx(1) and len(found.edges) == len(found.now) - 1
    assert found.text.startswith("its inputs changed: ")


def test_silent_and_revoked_devices_are_neither_peers_nor_suspects(town: Town) -> None:
    report(town, slow={"pi-3": 2.5})
    town.service.insights.catch_up()
    assert len(town.service.insights.list(device="pi-3").items) == 2
    town.clock.advance(2 * comparing.SILENT_S)
    town.service.insights.catch_up()
    assert town.service.insights.list().items == ()


def test_what_was_found_goes_with_its_device(town: Town) -> None:
    report(town, slow={"pi-3": 2.5})
    town.service.insights.catch_up()
    town.service.devices.remove(ADA, "pi-3")
    assert town.service.insights.list().items == ()


def test_findings_come_by_pages_the_worst_first(town: Town) -> None:
    report(town, slow={"pi-3": 2.5, "pi-4": 4.0})
    town.service.insights.catch_up()
    first = town.service.insights.list(limit=3)
    second = town.service.insights.list(after=first.next, limit=3)
    scores = [one.score for one in (*first.items, *second.items)]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert second.next is None


def test_steps_keep_their_pace(town: Town) -> None:
    report(town)
    assert town.service.insights.step() == 48
    report(town)
    assert town.service.insights.step() == 48
    assert town.service.insights.step() == 0, "not twice within a few seconds"


def test_devices_are_compared_some_at_a_time(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "SLICE", 3)
    report(town, slow={"pi-3": 2.5})
    found = []
    for _ in range(4):  # one takes the windows, three compare three devices, three, and two
        town.service.insights.step()
        found.append(len(town.service.insights.list(device="pi-3").items))
        town.clock.advance(5)
    assert found == [0, 0, 0, 2]


def test_a_comparison_that_was_left_begins_anew(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "SLICE", 3)
    report(town, slow={"pi-3": 2.5})
    for _ in range(3):
        town.service.insights.step()
        town.clock.advance(5)
    town.clock.advance(3600)  # another worker led
    report(town)
    for _ in range(4):
        town.service.insights.step()
        town.clock.advance(5)
    assert town.service.insights.list().items == (), "what was seen an hour ago is not held against a device now"
