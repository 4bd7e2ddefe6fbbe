"""From one bundle to the next: what is taken, what is refused, and what an agent falls back to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekit.bundle.manifest import Tier
from edgekit.errors import BundleError, OutputError, SessionError, UnreachableError
from edgekit.fleet.agent import slots
from edgekit.fleet.agent.home import STATE, Home, State
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.trial import Verdict
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.protocol.agents import Slot
from tests.fleet.agent.fleets import LocalFleet, trial
from tests.fleet.conftest import SettableClock

REASON = "the fleet was not reached within 600 s of the switch to it"


@pytest.fixture
def fleet(bundles: dict[str, Path]) -> LocalFleet:
    return LocalFleet(*bundles.values())


class Told(list[Slot]):
    @property
    def phases(self) -> list[str]:
        return [slot.phase for slot in self]


def started(home: Home, clock: Callable[[], float] | None = None, told: Told | None = None) -> Updater:
    settings = {} if clock is None else {"now": clock}
    updater = Updater(home, "device", NoRuntime(), trial, **settings)
    if told is not None:
        updater.report = told.append
    updater.start()
    return updater


@pytest.fixture
def updater(home: Home, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock) -> Updater:
    """Answers with the old bundle."""
    updater = started(home, clock)
    updater.follow(fleet, digests["old"])
    updater.heard()
    return updater


def damage(slot: Path) -> None:
    """A bit of the part's bytes, wherever links lead to them."""
    part = next((slot / "parts").iterdir())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    with part.open("r+b") as stream:
        stream.write(data)


def test_phases_are_told_in_the_order_of_the_steps(home: Home, fleet: LocalFleet, digests: dict[str, str]) -> None:
    told = Told()
    updater = started(home, told=told)
    updater.follow(fleet, digests["old"])
    assert told.phases == ["downloading", "checking", "switching"]
    assert updater.slot == Slot(running=digests["old"], phase="idle", checked=4, right=4)


def test_only_what_changed_travels(updater: Updater, fleet: LocalFleet, digests: dict[str, str]) -> None:
    before = {path.name for path in updater.home.blobs.iterdir()}
    fleet.sent.clear()
    updater.follow(fleet, digests["new"])
    sent = {sha256 for sha256, _, _ in fleet.sent}
    assert len(sent) == 3 and not sent & before  # the part, its golden answers and the manifest


def test_wrong_bundle_is_refused_and_not_tried_again_until_another_was_wanted(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    updater.follow(fleet, digests["wrong"])
    assert (updater.slot.phase, updater.slot.running) == ("failed", digests["old"])
    assert updater.slot.reason == "it answers wrong"
    fleet.sent.clear()
    updater.follow(fleet, digests["wrong"])
    assert updater.slot.phase == "failed" and not fleet.sent
    updater.follow(fleet, digests["old"])
    assert updater.slot.phase == "idle" and not updater.state.refused


def test_going_back_needs_no_network(updater: Updater, fleet: LocalFleet, digests: dict[str, str]) -> None:
    updater.follow(fleet, digests["new"])
    fleet.is_down = True
    updater.follow(fleet, digests["old"])
    assert updater.state.active == digests["old"] and updater.state.previous == digests["new"]


def test_network_that_drops_in_a_download_costs_only_what_was_on_its_way(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    fleet.sent.clear()
    fleet.chunk, drops = 300, 0
    for _ in range(30):
        fleet.cut_after = 1000
        try:
            updater.follow(fleet, digests["new"])
            break
        except UnreachableError:
            drops += 1
            assert updater.state.active == digests["old"]
    assert updater.state.active == digests["new"] and drops >= 2
    files = {sha256 for sha256, _, _ in fleet.sent}
    assert sum(sent for _, _, sent in fleet.sent) == sum(len(fleet.files[sha256]) for sha256 in files)
    assert any(start > 0 for _, start, _ in fleet.sent)


def test_part_that_was_torn_comes_once_more_from_its_start(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    part = updater.home.part / digests["new"]
    part.write_bytes(bytes(1000))
    updater.follow(fleet, digests["new"])
    assert updater.state.active == digests["new"]
    starts = [start for sha256, start, _ in fleet.sent if sha256 == digests["new"]]
    assert starts == [1000, 0]


def test_content_that_is_something_else_is_told_and_nothing_of_it_stays(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    fleet.files[digests["new"]] = fleet.files[digests["new"]][::-1]
    with pytest.raises(BundleError, match="is something else"):
        updater.follow(fleet, digests["new"])
    assert updater.state.active == digests["old"] and updater.slot.phase == "failed"
    assert not (updater.home.part / digests["new"]).exists()


def test_index_of_another_bundle_is_refused(updater: Updater, fleet: LocalFleet, digests: dict[str, str]) -> None:
    fleet.offers[digests["new"]] = fleet.offers[digests["third"]]
    with pytest.raises(BundleError, match="another bundle"):
        updater.follow(fleet, digests["new"])
    assert updater.state.active == digests["old"]


def test_disk_without_room_is_known_before_anything_is_written(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "ROOM_BYTES", 1 << 60)
    with pytest.raises(OutputError, match="are free"):
        updater.follow(fleet, digests["new"])
    assert not list(updater.home.part.iterdir())
    assert updater.slot.phase == "failed" and "more bytes are to come" in updater.slot.reason
    monkeypatch.undo()
    updater.follow(fleet, digests["new"])
    assert updater.state.active == digests["new"]


def test_file_that_both_slots_share_and_the_disk_damaged_comes_again(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], bundles: dict[str, Path]
) -> None:
    padding = hashlib.sha256((bundles["old"] / "assets" / "padding.bin").read_bytes()).hexdigest()
    with (updater.home.blobs / padding).open("r+b") as stream:  # one inode: the slot that counts has it too
        stream.write(b"rotten")
    updater.follow(fleet, digests["new"])
    assert updater.state.active == digests["new"]
    assert slots.is_whole(updater.home.slot(digests["new"]), digests["new"])


def test_bundle_that_the_disk_damaged_is_left_at_the_next_start_for_the_one_before(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    updater.follow(fleet, digests["new"])
    updater.heard()
    part = updater.home.slot(digests["new"]) / "parts" / "model.onnx"
    part.write_bytes(part.read_bytes()[:-1])
    again = started(updater.home)
    assert again.state.active == digests["old"] and again.slot.running == digests["old"]
    again.follow(fleet, digests["new"])
    assert again.state.active == digests["new"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"active": "../../etc"}', b"\xff" * 100, b"[]"])
def test_state_that_cannot_be_read_is_made_anew_from_what_is_there(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], content: bytes
) -> None:
    updater.follow(fleet, digests["new"])
    (updater.home.path / STATE).write_bytes(content)
    again = started(updater.home)
    assert again.state.active == digests["new"] and again.state.confirmed
    assert updater.home.read_state().active == digests["new"]


def test_state_without_slots_answers_with_nothing_and_takes_what_comes(
    home: Home, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    home.write_state(State(active=digests["old"], previous=digests["new"]))
    updater = started(home)
    assert updater.state.active is None
    updater.follow(fleet, digests["old"])
    assert updater.state.active == digests["old"]


def test_switch_that_was_cut_before_it_was_confirmed_is_tried_again_and_left_where_it_fails(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    updater.follow(fleet, digests["new"])
    updater.home.write_state(updater.state.model_copy(update={"confirmed": False}))

    def fails(slot: Path, tier: Tier) -> Verdict:
        return Verdict(4, 3, "it answers wrong today")

    again = Updater(updater.home, "device", NoRuntime(), fails)
    again.start()
    assert again.state.active == digests["old"]
    assert again.state.refused == {digests["new"]: "it answers wrong today"}
    assert again.slot.phase == "failed" and again.slot.candidate == digests["new"]


def test_bundle_with_which_the_fleet_cannot_be_reached_is_left(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock
) -> None:
    updater.follow(fleet, digests["new"])
    clock.advance(599)
    updater.unheard()
    assert updater.state.active == digests["new"]
    clock.advance(2)
    updater.unheard()
    assert updater.state.active == digests["old"] and updater.state.refused == {digests["new"]: REASON}


def test_nothing_answers_rather_than_what_the_disk_damaged(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock
) -> None:
    updater.follow(fleet, digests["new"])
    part = updater.home.slot(digests["old"]) / "parts" / "model.onnx"
    part.write_bytes(part.read_bytes()[:-1])
    clock.advance(601)
    updater.unheard()
    assert (updater.state.active, updater.slot.running, updater.slot.phase) == (None, None, "failed")


def test_bundle_with_which_the_fleet_was_reached_once_runs_for_ever_without_it(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock
) -> None:
    updater.follow(fleet, digests["new"])
    updater.heard()
    clock.advance(1e9)
    updater.unheard()
    assert updater.state.active == digests["new"]
    again = started(updater.home, clock)
    clock.advance(1e9)
    again.unheard()
    assert again.state.active == digests["new"]


def test_restarts_give_an_unheard_bundle_its_time_again_and_no_more(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock
) -> None:
    updater.follow(fleet, digests["new"])
    again = started(updater.home, clock)
    clock.advance(601)
    again.unheard()
    assert again.state.active == digests["old"]


def test_first_bundle_is_kept_though_the_fleet_is_not_reached(
    home: Home, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock
) -> None:
    updater = started(home, clock)
    updater.follow(fleet, digests["old"])
    clock.advance(1e6)
    updater.unheard()
    assert updater.state.active == digests["old"]


class Failing(NoRuntime):
    def __init__(self, *digests: str) -> None:
        super().__init__()
        self.digests = digests
        self.used: list[str] = []

    def use(self, bundle: Path | None, kept: Sequence[Path] = ()) -> None:
        self.used.append("" if bundle is None else bundle.name)
        if bundle is not None and bundle.name in self.digests:
            raise SessionError("the node ended with exit code 12")


def test_runtime_that_does_not_come_up_with_the_new_bundle_goes_on_with_the_old(
    home: Home, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    runtime = Failing(digests["new"])
    updater = Updater(home, "device", runtime, trial)
    updater.start()
    updater.follow(fleet, digests["old"])
    updater.follow(fleet, digests["new"])
    assert runtime.used[-2:] == [digests["new"], digests["old"]]
    assert updater.slot.phase == "failed" and updater.slot.reason == "the node ended with exit code 12"
    assert updater.slot.running == digests["old"] and home.current.resolve().name == digests["old"]


def test_runtime_that_fails_over_and_over_is_left_for_the_bundle_before(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    updater.follow(fleet, digests["new"])
    updater.leave(updater.home.slot(digests["old"]), "an earlier one")  # no longer what counts
    assert updater.state.active == digests["new"]
    updater.leave(updater.home.slot(digests["new"]), "the node ended 5 times")
    assert updater.state.active == digests["old"]
    updater.leave(updater.home.slot(digests["old"]), "the node ended 5 times")  # there is no other
    assert updater.state.active == digests["old"]


@pytest.mark.parametrize("has_previous", [False, True])
def test_what_the_disk_damaged_while_it_ran_comes_anew_once(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], has_previous: bool
) -> None:
    name = "new" if has_previous else "old"
    slot = updater.home.slot(digests[name])
    updater.follow(fleet, digests[name])
    damage(slot)
    updater.leave(slot, "the node ended 5 times")
    assert updater.slot == Slot(running=digests["old"] if has_previous else None)
    fleet.sent.clear()
    updater.follow(fleet, digests[name])
    assert updater.slot == Slot(running=digests[name], checked=4, right=4)
    assert len(fleet.sent) == 1  # what was damaged, and nothing else

    damage(slot)
    updater.leave(slot, "the node ended 5 times")
    assert (updater.slot.phase, updater.slot.reason) == ("failed", "the node ended 5 times: it is damaged on this disk")
    fleet.sent.clear()
    updater.follow(fleet, digests[name])
    assert not fleet.sent


def test_one_that_fell_back_answers_right_again_once_it_is_told_to_stay(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    updater.follow(fleet, digests["new"])
    updater.leave(updater.home.slot(digests["new"]), "it ends over and over")
    updater.follow(fleet, digests["new"])
    assert (updater.slot.running, updater.slot.phase) == (digests["old"], "failed")
    updater.follow(fleet, digests["old"])
    assert updater.slot == Slot(running=digests["old"], phase="idle", checked=4, right=4)


def test_nothing_wanted_is_nothing_run(updater: Updater, fleet: LocalFleet, digests: dict[str, str]) -> None:
    updater.follow(fleet, None)
    assert updater.slot == Slot()
    assert not updater.home.current.exists() and not list(updater.home.slots.iterdir())
    updater.follow(fleet, digests["old"])
    assert updater.state.active == digests["old"]


def test_a_device_keeps_none_and_holds_two(
    updater: Updater, fleet: LocalFleet, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    def count(slot: Path, tier: Tier) -> Verdict:
        nonlocal most
        most = max(most, sum(1 for _ in updater.home.slots.iterdir()))
        return trial(slot, tier)

    monkeypatch.setattr(updater, "_trial", count)
    for name in ("new", "third", "old", "new"):
        updater.follow(fleet, digests[name], [digests["old"]])
        updater.heard()
    assert updater.state.kept == () and most == 2


def test_server_fetches_what_it_is_to_keep_and_never_had(
    home: Home, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    updater = Updater(home, "edge", NoRuntime(), trial)
    updater.start()
    updater.follow(fleet, digests["new"], [digests["old"], digests["wrong"]])
    assert updater.state.kept == (digests["old"],) and digests["wrong"] in updater.state.refused
    assert slots.is_whole(home.slot(digests["old"]), digests["old"])
    updater.follow(fleet, digests["new"])
    assert updater.state.kept == () and {one.name for one in home.slots.iterdir()} == {digests["new"]}


def test_file_system_without_hard_links_gets_copies(
    home: Home, fleet: LocalFleet, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(home.disk, "link", no_links)
    updater = started(home)
    updater.follow(fleet, digests["old"])
    assert slots.is_whole(home.slot(digests["old"]), digests["old"])
