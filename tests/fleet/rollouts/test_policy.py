"""What a rollout does in each plight that a fleet gets into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.rollouts.guards import Verdict, parse_guards


def test_completes_in_the_steps_of_the_order(kit: Any) -> None:
    world = kit.World(kit.order((0.01, 0.1, 1.0)), kit.things(1000))
    asked = []
    while not world.ended:
        move = world.step()
        if move.ask:
            asked.append(len(move.ask))
    assert asked == [10, 90, 900]
    assert world.state == "complete"
    assert {member.state for member in world.members.values()} == {"right"}


def test_a_bad_bundle_meets_the_canary_alone_and_goes_back(kit: Any) -> None:
    world = kit.World(kit.order((0.01, 1.0)), kit.things(1000, nature="wrong"))
    assert world.run() == "rolled-back"
    ran = [name for name, thing in world.things.items() if kit.new in thing.ever_ran]
    assert len(ran) == 10
    assert all(thing.runs == kit.old for thing in world.things.values())
    assert "10 devices refused it or fell back; allowed 0" in world.reason


def test_a_refusal_tells_its_reason(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(3, nature="refused"))
    assert world.run() == "rolled-back"
    assert world.reason.endswith("no kernel for this machine")
    assert world.members["pi-0"].state == "reverted"


def test_one_that_falls_back_after_it_was_right_turns_the_rollout_back(kit: Any) -> None:
    world = kit.World(kit.order((0.5, 1.0), soak_s=50), kit.things(4))
    world.step()
    world.step()
    first = next(iter(world.told()))
    assert world.members[first].state == "right"
    world.things[first].nature = "falls-back"
    assert world.run() == "rolled-back"
    assert "it answers wrong by now" in world.reason


def test_one_that_runs_something_else_after_it_was_right_turns_the_rollout_back(kit: Any) -> None:
    world = kit.World(kit.order((0.5, 1.0), soak_s=1000), kit.things(2))
    while not any(member.state == "right" for member in world.members.values()):
        world.step()
    (canary,) = world.told()
    heard = replace(world.members[canary], slot=Slot(running=kit.old, checked=4, right=4), heard_at=world.now + 1)
    world.things[canary].online = False  # it was set up anew, say, and tells no reason
    world.members[canary] = heard
    world.step()
    assert (world.state, world.members[canary].state) == ("rolling-back", "reverting")


def test_one_without_golden_answers_is_never_right(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(1, nature="unchecked"))
    assert world.run() == "rolled-back"
    assert "1 device fell silent on the way" in world.reason


def test_a_bundle_that_takes_devices_with_it_goes_no_further_than_the_canary(kit: Any) -> None:
    world = kit.World(kit.order((0.1, 1.0)), kit.things(20, nature="kills"))
    world.members = {name: replace(one, heard_at=0.0) for name, one in world.members.items()}
    assert world.run() == "rolled-back"
    assert sum(kit.new in thing.ever_ran for thing in world.things.values()) == 2
    assert {world.things[name].wanted for name in world.told()} == {kit.old}, "told when they return"
    assert sorted({world.members[name].state for name in world.told()}) == ["lost"]


def test_right_ones_that_are_not_heard_of_again_count_before_the_next_step(kit: Any) -> None:
    world = kit.World(kit.order((0.5, 1.0), soak_s=30), kit.things(4))
    world.step()
    world.step()
    for name in world.told():
        world.things[name].online = False  # it answered right, and then broke the network
    assert world.run() == "rolled-back"
    assert "2 devices fell silent on the way" in world.reason
    assert len(world.told()) == 2


@pytest.mark.parametrize("soak_s", [50, 100, 200, 210, 1000, 10_000])
def test_a_step_may_soak_for_longer_than_a_device_may_take_to_answer(kit: Any, soak_s: int) -> None:
    world = kit.World(kit.order((0.25, 1.0), soak_s=soak_s, timeout_s=100), kit.things(4))
    assert world.run(3000) == "complete", world.reason


def test_who_falls_silent_within_a_long_soak_turns_it_back_before_its_end(kit: Any) -> None:
    world = kit.World(kit.order((0.25, 1.0), soak_s=1000, timeout_s=100), kit.things(4))
    while world.now < 300:
        world.step()
    (canary,) = world.told()
    world.things[canary].online = False
    while world.state == "running":
        world.step()
    assert world.reason == "1 device fell silent on the way; allowed 0"
    assert 600 < world.now < 700


def test_devices_that_were_silent_before_do_not_count_against_the_bundle(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(5))
    world.things["pi-0"].online = False
    assert world.run() == "complete"
    assert world.members["pi-0"].state == "lost"
    assert world.things["pi-0"].wanted == kit.new, "it gets the bundle when it returns"


def test_who_was_away_for_long_is_not_waited_for(kit: Any) -> None:
    world = kit.World(kit.order((0.2, 1.0), timeout_s=1000), kit.things(10))
    world.now = 5000.0
    for name in ("pi-0", "pi-1", "pi-2"):
        world.things[name].online = False
    assert world.run() == "complete"
    assert world.now < 5000 + 400
    assert sum(member.state == "lost" for member in world.members.values()) == 3


def test_a_step_in_which_nobody_answers_pauses(kit: Any) -> None:
    world = kit.World(kit.order((0.2, 1.0)), kit.things(5))
    canary = world.stages[0].devices[0]
    world.things[canary].online = False
    assert world.run() == "paused"
    assert world.reason == "no device of this step answers right with it, 1 of them not heard of"
    assert world.told() == {canary}


def test_a_canary_that_is_allowed_to_fail_is_still_no_proof(kit: Any) -> None:
    world = kit.World(kit.order((0.2, 1.0), max_wrong=3), kit.things(5, nature="refused"))
    assert world.run() == "paused"
    assert len(world.told()) == 1


def test_as_many_as_are_allowed_may_refuse(kit: Any) -> None:
    world = kit.World(kit.order(max_wrong=2), kit.things(8))
    world.things["pi-1"].nature = world.things["pi-2"].nature = "refused"
    assert world.run() == "complete"
    world = kit.World(kit.order(max_wrong=1), kit.things(8))
    world.things["pi-1"].nature = world.things["pi-2"].nature = "refused"
    assert world.run() == "rolled-back"


def test_what_was_said_before_the_order_counts_for_nothing(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(1))
    stale = world.members["pi-0"].slot.model_copy(update={"phase": "failed", "candidate": kit.new})
    world.members["pi-0"] = replace(world.members["pi-0"], slot=stale, heard_at=0.0)
    world.things["pi-0"].online = False
    world.step()
    world.step()
    assert world.members["pi-0"].state == "asked"
    world.things["pi-0"].online = True
    assert world.run() == "complete"


def test_never_more_than_the_window_on_their_way(kit: Any) -> None:
    world = kit.World(kit.order(window=3, timeout_s=1000), kit.things(10))
    for thing in world.things.values():
        thing.online = False
    for _ in range(5):
        world.step()
    assert len(world.told()) == 3
    for thing in world.things.values():
        thing.online = True
    assert world.run() == "complete"
    assert max(len(move.ask) for move in world.moves) == 3


def test_servers_move_first_and_let_go_of_the_old_bundle_last(kit: Any) -> None:
    world = kit.World(kit.order((0.5, 1.0)), kit.things(4, cloud=1, edge=2))
    asked = []
    while not world.ended:
        asked += [world.things[name].tier for name in world.step().ask]
        if "device" in asked and not world.ended:
            assert all(thing.kept == (kit.old,) for thing in world.things.values() if thing.tier != "device")
    assert asked == ["cloud", "edge", "edge", "device", "device", "device", "device"]
    assert all(thing.kept == () for thing in world.things.values())


def test_a_server_that_refuses_turns_it_back_before_any_device_is_asked(kit: Any) -> None:
    world = kit.World(kit.order(max_wrong=5), kit.things(4, edge=2))
    world.things["edge-1"].nature = "refused"
    assert world.run() == "rolled-back"
    assert world.told() == {"edge-0", "edge-1"}
    assert "no server may" in world.reason


def test_devices_wait_for_a_server_that_is_silent(kit: Any) -> None:
    world = kit.World(kit.order(max_wrong=5), kit.things(4, edge=2))
    world.things["edge-1"].online = False
    assert world.run() == "paused"
    assert world.told() == {"edge-0", "edge-1"}
    assert world.reason == "1 server not heard of; devices wait until all hold the bundle"


def test_servers_keep_the_old_bundle_while_a_device_still_runs_it(kit: Any) -> None:
    world = kit.World(kit.order(max_wrong=1), kit.things(4, edge=1))
    world.things["pi-2"].nature = "refused"
    assert world.run() == "complete"
    assert world.things["edge-0"].kept == (kit.old,)
    assert world.moves[-1].waits == "the servers keep the old bundle: 1 device still running it"


def test_servers_hold_both_until_the_last_device_has_gone_back(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(3, edge=1))
    world.things["pi-0"].nature = "wrong"
    while not world.ended:
        world.step()
        edge = world.things["edge-0"]
        for name, thing in world.things.items():
            if thing.tier == "device" and name in world.told() and thing.runs:
                assert thing.runs in (edge.runs, edge.wanted, *edge.kept)
    assert world.state == "rolled-back"
    assert (world.things["edge-0"].runs, world.things["edge-0"].kept) == (kit.old, ())


def test_servers_hold_the_new_bundle_for_a_head_that_may_have_moved_and_did_not_say_so(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(2, edge=1))
    world.things["pi-1"].nature = "refused"
    while "pi-0" not in world.told():
        world.step()
    world.things["pi-0"].online = False  # it runs the new bundle by now, and has no network
    world.things["pi-0"].runs = kit.new
    world.step()
    assert world.state == "rolling-back"
    edge, gone_back_at = world.things["edge-0"], world.now + 50
    while world.now < gone_back_at:
        world.step()
        assert kit.new in (edge.wanted, *edge.kept)
    world.things["pi-0"].online = True
    assert world.run() == "rolled-back"
    assert (edge.wanted, edge.kept) == (kit.old, ())


def test_a_complete_rollout_goes_back_by_way_of_the_servers(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(3, edge=1))
    assert world.run() == "complete"
    world.state, world.settled_at = "rolling-back", float("nan")
    tiers = []
    while not world.ended:
        move = world.step()
        tiers += [world.things[name].tier for name in (*move.keep, *move.revert)]
    assert tiers == ["edge", "device", "device", "device"]
    assert all((thing.runs, thing.kept) == (kit.old, ()) for thing in world.things.values())


def test_a_silent_server_does_not_hold_up_the_way_back_for_long(kit: Any) -> None:
    world = kit.World(kit.order(timeout_s=10_000), kit.things(3, edge=1))
    assert world.run() == "complete"
    world.state, world.settled_at = "rolling-back", float("nan")
    world.things["edge-0"].online = False
    began = world.now
    while not all(world.things[f"pi-{index}"].runs == kit.old for index in range(3)):
        world.step()
    assert world.now - began <= 150


def test_a_rollout_to_servers_alone(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(0, cloud=2))
    assert world.run() == "complete"
    assert [stage.text for stage in world.stages] == [
        "2 servers in the cloud, the old bundle kept", "servers let go of the old bundle",
    ]  # fmt: skip
    assert world.stages[0].judged


def test_a_device_that_leaves_before_it_was_asked_is_not_asked(kit: Any) -> None:
    world = kit.World(kit.order((0.5, 1.0)), kit.things(4))
    late = world.stages[1].devices[0]
    world.things[late].inside = False
    assert world.run() == "complete"
    assert world.members[late].state == "left"
    assert world.things[late].wanted == kit.old


def test_a_revoked_device_holds_nothing_up_and_would_go_back(kit: Any) -> None:
    world = kit.World(kit.order(timeout_s=1000), kit.things(3))
    world.things["pi-0"].online = False
    world.step()
    world.things["pi-0"].active = False
    assert world.run(20) == "complete"
    assert world.members["pi-0"].state == "left"
    world.state = "rolling-back"
    assert world.run(20) == "rolled-back"
    assert world.things["pi-0"].wanted == kit.old


def test_a_removed_device_is_no_loss(kit: Any) -> None:
    world = kit.World(kit.order((0.25, 1.0)), kit.things(4))
    world.step()
    world.remove(world.stages[0].devices[0])
    world.remove(world.stages[1].devices[0])
    assert world.run() == "complete"


def test_what_ran_before_may_be_nothing(kit: Any) -> None:
    things = kit.things(2, edge=1)
    for thing in things.values():
        thing.runs = None
    world = kit.World(kit.order(), things, previous=None)
    world.things["pi-1"].nature = "wrong"
    assert world.run() == "rolled-back"
    assert all((thing.runs, thing.kept) == (None, ()) for thing in world.things.values())


def test_a_bundle_that_was_there_before_needs_no_way_back(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(2), previous=kit.new)
    world.step()
    world.state = "rolling-back"
    assert world.run(10) == "rolled-back"
    assert all(thing.runs == kit.new for thing in world.things.values())


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_broken_guard_turns_it_back_even_while_it_is_paused(kit: Any, state: str) -> None:
    world = kit.World(kit.order((0.25, 1.0), soak_s=1000), kit.things(4))
    world.step()
    world.step()
    world.state = state
    world.verdicts = (Verdict("p95<=80ms", 95.0, False, 1200),)
    assert world.run() == "rolled-back" or world.state == "paused"
    while not world.ended:
        world.step()
    assert world.state == "rolled-back"
    assert world.reason == "guard broken: p95<=80ms: 95 of 1,200 samples"


def test_a_guard_is_told_in_its_unit(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(1))
    from edgekit.fleet.rollouts.policy import decide

    verdicts = (Verdict("errors<=0.1%", 0.031, False, 900),)
    found = decide(replace(world.situation(), verdicts=verdicts, guards=parse_guards("errors<=0.1%")), 1.0)
    assert found.reason == "guard broken: errors<=0.1%: 3.1 % of 900 samples"


def test_a_guard_that_cannot_be_judged_pauses_after_a_while(kit: Any) -> None:
    world = kit.World(kit.order((0.25, 1.0), soak_s=50, timeout_s=200), kit.things(4))
    world.verdicts = (Verdict("agreement>=0.97", float("nan"), None, 0, "0 samples, wanted 34"),)
    assert world.run() == "paused"
    assert world.reason == "cannot be judged: agreement>=0.97 (0 samples, wanted 34)"
    assert 250 <= world.now <= 320
    assert len(world.told()) == 1


def test_guards_are_not_waited_for_while_servers_move(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(1, edge=1))
    world.verdicts = (Verdict("p95<=80ms", float("nan"), None, 0),)
    world.step()
    world.step()
    world.step()
    assert world.stage == 1


def test_the_soak_begins_when_all_of_a_step_are_right(kit: Any) -> None:
    world = kit.World(kit.order((0.5, 1.0), soak_s=100), kit.things(2))
    late = world.stages[0].devices[0]
    world.things[late].online = False
    for _ in range(5):
        world.step()
    world.things[late].online = True
    began = world.now
    while world.stage == 0:
        world.step()
    assert world.now - began >= 100


def test_an_ended_rollout_moves_nothing(kit: Any) -> None:
    world = kit.World(kit.order(), kit.things(2))
    world.run()
    assert world.step().states == {}
    assert world.moves[-1].ask == world.moves[-1].revert == ()
