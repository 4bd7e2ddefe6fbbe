"""Rollouts over the database: what devices get, what groups want afterwards, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import AbsentError, ConflictError, ForbiddenError, UsageError
from edgekit.fleet.protocol.people import DeviceChange
from edgekit.fleet.rollouts.policy import Move, Situation
from edgekit.fleet.service import FleetService, rollout_steps
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device
from tests.fleet.bundles import make_bundle
from tests.fleet.conftest import SettableClock
from tests.fleet.town import ADA, Town, push


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rolled-out")
    split = {
        f"split-{scale}": make_bundle(folder / f"s{scale}", scale=scale, edge=True, as_directory=True)
        for scale in (2, 3)
    }
    plain = {f"v{scale}": make_bundle(folder / f"v{scale}", scale=scale, as_directory=True) for scale in (2, 3, 4)}
    return split | plain


@pytest.fixture
def town(tmp_path: Path, clock: SettableClock) -> Iterator[Town]:
    service = FleetService(tmp_path / "data", now=clock)
    yield Town(service, clock)
    service.close()


@pytest.fixture
def digests(town: Town, made: dict[str, Path]) -> dict[str, str]:
    return {name: push(town.service, path) for name, path in made.items()}


@pytest.fixture
def pis(town: Town, digests: dict[str, str]) -> Town:
    """Ten devices of the group pi, which run v2."""
    for index in range(10):
        town.add(f"pi-{index}", board="rpi4")
    town.group("pi", "board=rpi4")
    assert town.roll_out(digests["v2"], "pi").state == "complete"
    return town


def test_a_rollout_on_either_database(fleet: FleetService, clock: SettableClock, made: dict[str, Path]) -> None:
    town = Town(fleet, clock)
    digests = {name: push(fleet, made[name]) for name in ("v2", "v3")}
    for index in range(4):
        town.add(f"pi-{index}", board="rpi4")
    town.group("pi", "board=rpi4")
    view = town.roll_out(digests["v2"], "pi", steps=(0.25, 1.0))
    assert (view.state, view.tally.right) == ("complete", 4)
    assert view.stages == ("25 % of 4: 1 device", "all 4: 3 more devices")
    town.things["pi-2"].answers[digests["v3"]] = False
    view = town.roll_out(digests["v3"], "pi")
    assert (view.state, view.tally.reverted) == ("rolled-back", 4)
    assert view.reason == "1 device refused it or fell back; allowed 0: its golden answers are wrong"
    assert set(town.wanted().values()) == {digests["v2"]}
    assert {thing.running for thing in town.things.values()} == {digests["v2"]}
    assert town.roll_out(digests["v3"], "pi", max_wrong=1).state == "complete"
    assert fleet.rollouts.roll_back(ADA, "latest").state == "rolling-back"
    assert town.carry().state == "rolled-back"


def test_nobody_outside_the_group_is_touched(pis: Town, digests: dict[str, str]) -> None:
    pis.add("other", board="nano")
    before = pis.device("other")
    pis.roll_out(digests["v3"], "pi")
    after = pis.device("other")
    assert (after.wanted, after.generation) == (None, before.generation)


def test_who_enrols_later_gets_the_groups_bundle(pis: Town, digests: dict[str, str]) -> None:
    pis.add("late", board="rpi4")
    pis.add("stranger", board="nano")
    pis.step()
    pis.step()
    assert pis.wanted()["late"] == digests["v2"]
    assert pis.wanted()["stranger"] is None
    assert pis.service.rollouts.get("latest").tally.right == 11


def test_who_joins_during_a_rollout_gets_what_it_ends_with(pis: Town, digests: dict[str, str]) -> None:
    pis.start(digests["v3"], "pi", soak_s=300)
    pis.step()
    pis.add("late", board="rpi4")
    pis.step()
    assert pis.wanted()["late"] is None, "who joins waits for the end"
    assert pis.carry().state == "complete"
    pis.step()
    assert pis.wanted()["late"] == digests["v3"]


def test_who_joins_a_rollout_that_goes_back_gets_the_old_bundle(pis: Town, digests: dict[str, str]) -> None:
    pis.things["pi-3"].answers[digests["v3"]] = False
    pis.start(digests["v3"], "pi")
    pis.add("late", board="rpi4")
    assert pis.carry().state == "rolled-back"
    pis.step()
    assert pis.wanted()["late"] == digests["v2"]


def test_who_moves_to_another_group_gets_that_ones(pis: Town, digests: dict[str, str]) -> None:
    pis.add("lab-1", site="lab")
    pis.group("lab", "site=lab")
    pis.roll_out(digests["v3"], "lab")
    pis.service.devices.change(ADA, "pi-4", DeviceChange(labels={"site": "lab"}))
    pis.step()
    assert pis.wanted()["pi-4"] == digests["v3"]
    assert pis.wanted()["pi-5"] == digests["v2"]


def test_of_two_groups_the_one_that_was_completed_last_counts(pis: Town, digests: dict[str, str]) -> None:
    pis.group("nine", "name=pi-9")
    pis.roll_out(digests["v3"], "nine")
    pis.step()
    assert pis.wanted()["pi-9"] == digests["v3"], "the wider group does not take it back"
    pis.service.rollouts.roll_back(ADA, "latest")
    pis.carry()
    pis.step()
    assert pis.wanted()["pi-9"] == digests["v2"]


def test_one_that_left_before_it_was_asked_keeps_what_it_runs(pis: Town, digests: dict[str, str]) -> None:
    view = pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=300)
    pis.step()
    waiting = next(name for name, wanted in pis.wanted().items() if wanted == digests["v2"])
    pis.service.devices.change(ADA, waiting, DeviceChange(labels={}))
    view = pis.carry()
    assert (view.state, view.tally.left, view.tally.right) == ("complete", 1, 9)
    assert pis.wanted()[waiting] == digests["v2"]


def test_revoked_and_removed_devices_hold_nothing_up(pis: Town, digests: dict[str, str]) -> None:
    pis.things["pi-1"].online = pis.things["pi-2"].online = False
    pis.start(digests["v3"], "pi")
    pis.step()
    pis.service.devices.change(ADA, "pi-1", DeviceChange(standing="revoked"))
    pis.service.devices.remove(ADA, "pi-2")
    del pis.things["pi-2"]
    view = pis.carry(most=4)
    assert (view.state, view.tally.right, view.tally.left) == ("complete", 8, 1)


def test_a_silent_device_is_told_when_it_returns(pis: Town, digests: dict[str, str]) -> None:
    pis.things["pi-1"].online = False
    assert pis.roll_out(digests["v3"], "pi").tally.lost == 1
    pis.things["pi-1"].online = True
    pis.step()
    pis.step()
    assert pis.things["pi-1"].running == digests["v3"]
    assert pis.service.rollouts.get("latest").tally.lost == 0


def test_what_ran_before_anybody_told_it_comes_back(town: Town, digests: dict[str, str]) -> None:
    town.add("pi-1", board="rpi4").running = digests["v2"]
    town.group("pi", "board=rpi4")
    town.follow(["pi-1"])
    with town.service.database.write() as session:  # it came with the bundle: an image that was flashed
        row = session.get(Device, town.things["pi-1"].id)
        assert row is not None
        row.running = digests["v2"]
    town.things["pi-1"].answers[digests["v3"]] = False
    assert town.roll_out(digests["v3"], "pi").state == "rolled-back"
    assert town.wanted()["pi-1"] == digests["v2"]


def test_a_complete_rollout_goes_back_with_those_that_joined(pis: Town, digests: dict[str, str]) -> None:
    pis.roll_out(digests["v3"], "pi")
    pis.add("late", board="rpi4")
    pis.step()
    pis.step()
    assert pis.things["late"].running == digests["v3"]
    pis.service.rollouts.roll_back(ADA, "latest")
    assert pis.carry().state == "rolled-back"
    pis.step()
    assert {thing.running for thing in pis.things.values()} == {digests["v2"]}


def test_an_older_rollout_does_not_go_back_under_a_newer_one(pis: Town, digests: dict[str, str]) -> None:
    first = pis.roll_out(digests["v3"], "pi")
    pis.roll_out(digests["v4"], "pi")
    with pytest.raises(ConflictError, match=r"every device of the rollout .* got another bundle since"):
        pis.service.rollouts.roll_back(ADA, first.id)
    pis.service.rollouts.roll_back(ADA, "latest")
    pis.carry()
    pis.service.rollouts.roll_back(ADA, first.id)
    for _ in range(4):
        pis.step()
    assert set(pis.wanted().values()) == {digests["v2"]}


def test_nothing_goes_back_to_a_bundle_that_is_gone(pis: Town, digests: dict[str, str]) -> None:
    pis.roll_out(digests["v3"], "pi")
    pis.service.bundles.remove(ADA, digests["v2"])
    with pytest.raises(ConflictError, match="not in the registry any more"):
        pis.service.rollouts.roll_back(ADA, "latest")
    assert pis.service.rollouts.get("latest").state == "complete"


def test_a_complete_one_does_not_go_back_while_another_goes_on(pis: Town, digests: dict[str, str]) -> None:
    first = pis.service.rollouts.get("latest")
    pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=300)
    with pytest.raises(ConflictError, match="goes on in pi"):
        pis.service.rollouts.roll_back(ADA, first.id)


def test_guards_are_judged_by_windows_of_the_new_bundle(pis: Town, digests: dict[str, str]) -> None:
    def report() -> None:
        for name, thing in pis.things.items():
            slow = thing.running == digests["v3"]
            pis.window(name, thing.running or "", latencies=[95.0 if slow else 60.0] * 40)

    pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=120, guards="p95<=80ms,p95<=1.2x")
    view = pis.carry(before=report)
    assert view.state == "rolled-back"
    assert "guard broken: p95<=80ms: " in view.reason and "p95<=1.2x" in view.reason
    assert sum(digests["v3"] in thing.ever_ran for thing in pis.things.values()) == 1
    assert {guard.holds for guard in view.guards} == {False}


def test_guards_that_hold_let_it_go_on_to_the_end(pis: Town, digests: dict[str, str]) -> None:
    def report() -> None:
        for name, thing in pis.things.items():
            pis.window(name, thing.running or "", latencies=[60.0] * 40, temperature=50.0)

    pis.start(
        digests["v3"], "pi", steps=(0.1, 1.0), soak_s=120, guards="p95<=1.2x,errors<=1%,temperature<=60C,golden>=1"
    )
    view = pis.carry(before=report)
    assert view.state == "complete"
    assert {guard.text: guard.holds for guard in view.guards} == {
        "p95<=1.2x": True, "errors<=1%": True, "temperature<=60C": True, "golden>=1": True,
    }  # fmt: skip


def test_a_guard_without_samples_pauses_and_goes_on_when_resumed(pis: Town, digests: dict[str, str]) -> None:
    pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=60, guards="p95<=80ms")
    view = pis.carry()
    assert view.state == "paused"
    assert view.reason == "cannot be judged: p95<=80ms (0 samples, wanted 20)"
    pis.service.rollouts.resume(ADA, "latest")

    def report() -> None:
        for name, thing in pis.things.items():
            pis.window(name, thing.running or "", latencies=[60.0] * 40)

    assert pis.carry(before=report).state == "complete"


def test_what_servers_see_hides_nothing_that_devices_see(town: Town, digests: dict[str, str]) -> None:
    for index in range(4):
        town.add(f"pi-{index}", site="a")
    town.add("edge-1", "edge", site="a")
    town.group("a", "site=a")
    town.roll_out(digests["split-2"], "a")

    def report() -> None:
        for name, thing in town.things.items():
            slow = name != "edge-1" and thing.running == digests["split-3"]
            took_ms = 3.0 if name == "edge-1" else 95.0 if slow else 60.0
            town.window(name, thing.running or "", latencies=[took_ms] * (2000 if name == "edge-1" else 40))

    town.start(digests["split-3"], "a", steps=(0.25, 1.0), soak_s=120, guards="p95<=80ms")
    view = town.carry(before=report)
    assert view.state == "rolled-back", view
    assert sum(digests["split-3"] in thing.ever_ran for name, thing in town.things.items() if name != "edge-1") == 1


def test_a_guard_that_breaks_while_it_is_paused_turns_it_back(pis: Town, digests: dict[str, str]) -> None:
    pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=300, guards="p95<=80ms")
    pis.step()
    pis.step()
    pis.service.rollouts.pause(ADA, "latest")
    for _ in range(6):
        for name, thing in pis.things.items():
            pis.window(name, thing.running or "", latencies=[200.0 if thing.running == digests["v3"] else 60.0] * 40)
        pis.step()
    view = pis.service.rollouts.get("latest")
    assert view.state == "rolled-back" and "guard broken: p95<=80ms" in view.reason


def test_what_was_seen_in_an_earlier_try_counts_for_nothing(pis: Town, digests: dict[str, str]) -> None:
    slow_ms = 200.0

    def report() -> None:
        for name, thing in pis.things.items():
            took_ms = slow_ms if thing.running == digests["v3"] else 60.0
            pis.window(name, thing.running or "", latencies=[took_ms] * 40)

    guarded = {"steps": (0.5, 1.0), "soak_s": 120, "guards": "p95<=80ms"}
    pis.start(digests["v3"], "pi", **guarded)
    assert pis.carry(before=report).state == "rolled-back"
    slow_ms = 60.0
    pis.start(digests["v3"], "pi", **guarded)
    assert pis.carry(before=report).state == "complete"


def test_what_a_person_does_while_a_step_is_decided_is_not_undone(
    pis: Town, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=60)
    decide = rollout_steps.decide

    def slow(situation: Situation, now: float) -> Move:
        move = decide(situation, now)
        if move.ask:
            pis.service.rollouts.pause(ADA, "latest")
        return move

    monkeypatch.setattr(rollout_steps, "decide", slow)
    pis.service.rollouts.advance()
    assert pis.service.rollouts.get("latest").state == "paused"
    assert set(pis.wanted().values()) == {digests["v2"]}


def test_where_too_few_were_compared_at_the_same_time_the_time_before_counts(
    pis: Town, digests: dict[str, str]
) -> None:
    pis.group("pi", "board=rpi4", compare_share=0.1)

    def report(compared: int = 4) -> None:
        for name, thing in pis.things.items():
            pis.window(name, thing.running or "", latencies=[60.0] * 40, compared=compared, agreed=compared)

    for _ in range(3):
        pis.step(before=report)
    pis.start(digests["v3"], "pi", soak_s=120, guards="agreement>=0.9x")
    pis.service.rollouts.advance()
    pis.clock.advance(31.0)
    report(compared=1)  # what they still saw with the old bundle, while they were on their way
    pis.follow()
    assert pis.carry(before=report).state == "complete"


def test_resuming_asks_lost_devices_again(pis: Town, digests: dict[str, str]) -> None:
    view = pis.start(digests["v3"], "pi", steps=(0.1, 1.0))
    pis.service.rollouts.advance()
    canary = next(name for name, wanted in pis.wanted().items() if wanted == digests["v3"])
    pis.things[canary].online = False
    view = pis.carry()
    assert (view.state, view.tally.lost) == ("paused", 1)
    pis.things[canary].online = True
    pis.service.rollouts.resume(ADA, view.id)
    assert pis.carry().state == "complete"


def test_heads_meet_their_tails(town: Town, digests: dict[str, str]) -> None:
    for index in range(3):
        town.add(f"pi-{index}", site="a")
    town.add("edge-1", "edge", site="a")
    town.group("a", "site=a")
    town.roll_out(digests["split-2"], "a")
    assert town.device("edge-1").kept == [], "nothing ran there before"
    town.start(digests["split-3"], "a", steps=(0.3, 1.0), soak_s=60)
    while town.service.rollouts.get("latest").state == "running":
        town.step()
        heads = {town.device(f"pi-{index}").wanted for index in range(3)}
        edge = town.device("edge-1")
        assert heads <= {edge.wanted, *edge.kept}
    assert edge.kept == []
    view = town.service.rollouts.get("latest")
    assert view.stages == (
        "1 server on the edge first, the old bundle kept", "30 % of 3: 1 device", "all 3: 2 more devices",
        "servers let go of the old bundle",
    )  # fmt: skip


def test_a_server_that_went_back_keeps_nothing_beside(town: Town, digests: dict[str, str]) -> None:
    for index in range(3):
        town.add(f"pi-{index}", site="a")
    town.add("edge-1", "edge", site="a")
    town.group("a", "site=a")
    town.roll_out(digests["split-2"], "a")
    town.things["pi-1"].answers[digests["split-3"]] = False
    assert town.roll_out(digests["split-3"], "a").state == "rolled-back"
    edge = town.device("edge-1")
    assert (edge.wanted, edge.kept) == (digests["split-2"], [])
    assert {thing.running for thing in town.things.values()} == {digests["split-2"]}


def test_a_server_lets_go_once_the_last_device_has_moved(town: Town, digests: dict[str, str]) -> None:
    for index in range(3):
        town.add(f"pi-{index}", site="a")
    town.add("edge-1", "edge", site="a")
    town.group("a", "site=a")
    town.roll_out(digests["split-2"], "a")
    town.things["pi-1"].online = False
    view = town.roll_out(digests["split-3"], "a")
    assert (view.state, view.reason) == ("complete", "the servers keep the old bundle: 1 device still running it")
    town.step()
    assert town.device("edge-1").kept == [digests["split-2"]]
    town.things["pi-1"].online = True
    town.step()
    town.step()
    assert town.device("edge-1").kept == []


def test_a_bundle_whose_tails_are_the_same_needs_no_keeping(
    town: Town, digests: dict[str, str], tmp_path: Path
) -> None:
    padded = push(town.service, make_bundle(tmp_path / "padded", scale=2, edge=True, padding=100, as_directory=True))
    for name, tier in (("pi-1", "device"), ("edge-1", "edge")):
        town.add(name, tier, site="a")  # type: ignore[arg-type]
    town.group("a", "site=a")
    town.roll_out(digests["split-2"], "a")
    view = town.roll_out(padded, "a")
    assert view.state == "complete"
    assert view.stages[0] == "1 server on the edge first, its tails answer for the old bundle too"
    assert len(view.stages) == 2


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"group": "nobody"}, UsageError, "holds no device"),
        ({"group": "unknown"}, AbsentError, "no group unknown"),
        ({"bundle": "f" * 64}, AbsentError, "no bundle"),
        ({"guards": "agreement>=0.97"}, UsageError, "no group sends requests to be compared"),
        ({"guards": "speed>=1"}, UsageError, "watches 'speed'"),
        ({"group": "edges"}, UsageError, "has no part for the edge, and the group holds 1 device there"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    pis: Town, digests: dict[str, str], changes: dict[str, str], error: type[Exception], said: str
) -> None:
    pis.group("nobody", "board=none")
    pis.add("edge-1", "edge", site="e")
    pis.group("edges", "site=e")
    before = len(pis.service.rollouts.list().items)
    with pytest.raises(error, match=said):
        pis.start(**{"bundle": digests["v3"], "group": "pi", **changes})  # type: ignore[arg-type]
    assert len(pis.service.rollouts.list().items) == before


def test_one_rollout_at_a_time_where_devices_are_shared(pis: Town, digests: dict[str, str]) -> None:
    pis.group("nine", "name=pi-9")
    pis.start(digests["v3"], "pi", soak_s=300)
    with pytest.raises(ConflictError, match="which shares devices"):
        pis.start(digests["v3"], "nine")
    with pytest.raises(ConflictError, match="goes on in pi"):
        pis.start(digests["v4"], "pi")


def test_one_that_left_for_another_rollout_and_is_back_is_asked_by_one_alone(
    pis: Town, digests: dict[str, str]
) -> None:
    first = pis.start(digests["v3"], "pi", steps=(0.1, 1.0), soak_s=300)
    pis.step()
    waiting = next(name for name, wanted in pis.wanted().items() if wanted == digests["v2"])
    pis.service.devices.change(ADA, waiting, DeviceChange(labels={"site": "lab"}))
    pis.group("lab", "site=lab")
    pis.step()
    second = pis.start(digests["v4"], "lab", soak_s=1200)
    pis.service.devices.change(ADA, waiting, DeviceChange(labels={"site": "lab", "board": "rpi4"}))
    for _ in range(25):
        pis.step()
        assert pis.wanted()[waiting] != digests["v3"]
    assert pis.service.rollouts.get(first.id).tally.left == 1
    assert pis.service.rollouts.get(second.id).tally.right == 1


def test_only_what_can_be_turned_is_turned(pis: Town, digests: dict[str, str]) -> None:
    rollouts = pis.service.rollouts
    with pytest.raises(ConflictError, match="is complete, allowed running"):
        rollouts.pause(ADA, "latest")
    with pytest.raises(ForbiddenError):
        rollouts.roll_back(Actor("vi", "viewer"), "latest")
    pis.start(digests["v3"], "pi", soak_s=300)
    assert rollouts.pause(ADA, "latest").reason == "paused by ada"
    before = pis.wanted()
    pis.step()
    assert pis.wanted() == before, "nobody is asked while it is paused"
    assert rollouts.resume(ADA, "latest").reason == ""
    assert rollouts.roll_back(ADA, "latest").reason == "rolled back by ada"
    assert pis.carry().state == "rolled-back"


def test_nothing_is_written_where_nothing_changes(pis: Town, digests: dict[str, str]) -> None:
    pis.start(digests["v3"], "pi", soak_s=3600)
    pis.step()
    pis.step()
    before = pis.service.rollouts.get("latest").version
    for _ in range(20):
        pis.clock.advance(1.0)
        pis.service.rollouts.advance()
    assert pis.service.rollouts.get("latest").version - before <= 1


def test_rollouts_are_listed_by_pages(pis: Town, digests: dict[str, str]) -> None:
    for name in ("v3", "v4"):
        pis.roll_out(digests[name], "pi")
    first = pis.service.rollouts.list(limit=2)
    second = pis.service.rollouts.list(after=first.next, limit=2)
    assert [view.bundle for view in (*first.items, *second.items)] == [digests["v4"], digests["v3"], digests["v2"]]
    assert second.next is None
