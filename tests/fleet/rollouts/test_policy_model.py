"""Random fleets, random faults: whatever happens, a rollout keeps to its order and comes to an end."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.fleet.rollouts.policy import Move

NATURES = ("good", "good", "good", "good", "refused", "unchecked", "wrong", "falls-back", "kills")
MOST_STEPS = 400


class Watch:
    """Looks at every move before it is done."""

    def __init__(self, kit: Any, world: Any) -> None:
        self.kit, self.world = kit, world
        self.position = {name: at for at, stage in enumerate(world.stages) for name in stage.devices if not stage.ends}

    def __call__(self, move: Move) -> None:
        self.within(move)
        self.in_order(move)
        self.heads_find_their_tails(move)
        self.servers_keep_what_is_needed(move)

    def within(self, move: Move) -> None:
        for name in (*move.ask, *move.revert, *move.keep, *move.release, *move.states):
            assert name in self.world.members, "nobody outside the group is touched"
        told = self.world.told()
        assert set(move.revert) | set(move.keep) <= told, "only who was asked goes back"
        assert set(move.release) <= told

    def in_order(self, move: Move) -> None:
        world = self.world
        assert not move.ask or (world.state == "running" and move.state == "running")
        assert all(self.position[name] <= world.stage for name in move.ask)
        then = {name: member.state for name, member in world.members.items()} | dict(move.states)
        under_way = sum(state == "asked" for state in then.values())
        assert not world.order.window or not move.ask or under_way <= world.order.window

    def heads_find_their_tails(self, move: Move) -> None:
        world = self.world
        if not any(world.things[name].tier == "device" for name in move.ask):
            return
        for name, thing in world.things.items():
            takes_part = thing.active and (thing.inside or world.members[name].was_told)
            if thing.tier != "device" and takes_part and name in self.position:
                state = move.states.get(name, world.members[name].state)
                assert state == "right" and world.members[name].slot.running == self.kit.new

    def servers_keep_what_is_needed(self, move: Move) -> None:
        needed = self.world.running()
        for name in (*move.release, *move.revert):
            thing = self.world.things[name]
            lets_go = {*thing.kept, thing.wanted} - {self.world.members[name].previous}
            if name in move.release:
                lets_go = set(thing.kept)
            if thing.tier != "device" and thing.active:
                assert not any(needed[digest] for digest in lets_go if digest)


def fleet(kit: Any, random: Random) -> Any:
    bad = random.choice((0.0, 0.0, 0.05, 0.5, 1.0))
    things = kit.things(random.randint(0, 12), cloud=random.randint(0, 1), edge=random.randint(0, 2))
    things = things or kit.things(1)
    for thing in things.values():
        if random.random() < bad:
            thing.nature = random.choice(NATURES)
        thing.online = random.random() < 0.9
    steps = sorted({round(random.uniform(0.01, 0.9), 2) for _ in range(random.randint(0, 3))} | {1.0})
    order = kit.order(
        steps,
        window=random.choice((0, 0, 1, 3)),
        max_wrong=random.choice((0, 0, 1, 4)),
        soak_s=random.choice((0, 30, 90)),
        timeout_s=random.choice((50, 200)),
    )
    previous = random.choice((kit.old, kit.old, kit.old, None))
    if previous is None:
        for thing in things.values():
            thing.runs = None
    return kit.World(order, things, previous)


def disturb(world: Any, random: Random, flaky: float) -> None:
    for name, thing in list(world.things.items()):
        dice = random.random()
        if dice < flaky:
            thing.online = not thing.online if thing.nature != "kills" else thing.online
        elif dice < 1.1 * flaky:
            thing.active = not thing.active
        elif dice < 1.2 * flaky:
            thing.inside = not thing.inside
        elif dice < 1.25 * flaky and len(world.things) > 1:
            world.remove(name)


@given(st.randoms(use_true_random=False), st.sampled_from((0.0, 0.02, 0.1)), st.booleans())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_rollout_keeps_its_order_and_ends(kit: Any, random: Random, flaky: float, gives_up: bool) -> None:
    world = fleet(kit, random)
    watch = Watch(kit, world)
    pauses = 0
    for _ in range(MOST_STEPS):
        if world.ended:
            break
        if world.state == "paused":  # a person decides: once more, and then back
            pauses += 1
            world.state = "rolling-back" if gives_up or pauses > 3 else "running"
        world.step(before=watch)
        disturb(world, random, flaky)
    assert world.ended
    if world.state == "rolled-back":
        for name in world.told():
            assert world.things[name].wanted == world.members[name].previous, "every asked device has its old orders"


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_too_many_failures_always_turn_it_back(kit: Any, random: Random) -> None:
    count, allowed = random.randint(2, 30), random.randint(0, 3)
    world = kit.World(kit.order((random.uniform(0.01, 0.5), 1.0), max_wrong=allowed), kit.things(count))
    bad = random.sample(sorted(world.things), min(count, allowed + 1))
    for name in bad:
        world.things[name].nature = random.choice(("refused", "unchecked", "wrong", "kills"))
    world.run()
    assert world.state == ("rolled-back" if len(bad) > allowed else "complete") or world.state == "paused"
    if world.state == "rolled-back":
        honest = [name for name in world.told() if world.things[name].online]
        assert all(world.things[name].runs == kit.old for name in honest)
        assert all(world.things[name].wanted == kit.old for name in world.told())


@given(st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_rollback_of_a_complete_one_reaches_all_that_are_there(kit: Any, random: Random) -> None:
    world = kit.World(kit.order(), kit.things(random.randint(1, 8), edge=random.randint(0, 2)))
    assert world.run() == "complete"
    world.state, world.settled_at = "rolling-back", float("nan")
    away = random.sample(sorted(world.things), random.randint(0, len(world.things) // 2))
    for name in away:
        world.things[name].online = False
    watch = Watch(kit, world)
    for _ in range(MOST_STEPS):
        if world.ended:
            break
        world.step(before=watch)
    assert world.state == "rolled-back"
    assert all(world.things[name].runs == kit.old for name in world.things if name not in away)
    for name in away:
        world.things[name].online = True
        world.members[name] = world.things[name].follow(world.members[name], world.now)
        assert world.things[name].runs == kit.old, "a silent one is told when it returns"
