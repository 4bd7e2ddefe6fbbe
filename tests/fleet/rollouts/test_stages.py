"""Steps: whom they hold, in which order, and how they read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.rollouts.stages import counted, plan_stages


def stages(kit: Any, count: int, *steps: float, seed: str = "seed", **options: Any) -> tuple[Any, ...]:
    return plan_stages(seed, kit.order(steps), {f"pi-{index}": "device" for index in range(count)}, **options)


def test_texts_say_how_many(kit: Any) -> None:
    assert [one.text for one in stages(kit, 200, 0.05, 0.25, 1.0)] == [
        "5 % of 200: 10 devices", "25 % of 200: 40 more devices", "all 200: 150 more devices",
    ]  # fmt: skip
    assert [one.text for one in stages(kit, 21, 0.05, 0.1, 1.0)] == [
        "5 % of 21: 2 devices", "10 % of 21: 1 more device", "all 21: 18 more devices",
    ]  # fmt: skip
    assert [one.text for one in stages(kit, 1, 0.05, 1.0)] == ["all 1: 1 device"]
    assert stages(kit, 12345, 0.125, 1.0)[0].text == "12.5 % of 12,345: 1,544 devices"


def test_one_percent_of_a_thousand_are_ten(kit: Any) -> None:
    assert [len(one.devices) for one in stages(kit, 1000, 0.01, 1.0)] == [10, 990]
    for share in (0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58):
        assert len(stages(kit, 100, share, 1.0)[0].devices) == round(100 * share), "not one more by rounding"


def test_a_small_share_is_one_device(kit: Any) -> None:
    assert len(stages(kit, 10, 0.01, 1.0)[0].devices) == 1


@given(st.integers(1, 300), st.lists(st.floats(0.001, 0.999), max_size=5), st.text(max_size=5))
def test_each_device_is_in_one_step(kit: Any, count: int, shares: list[float], seed: str) -> None:
    found = stages(kit, count, *sorted({*shares, 1.0}), seed=seed)
    devices = [device for stage in found for device in stage.devices]
    assert len(devices) == len(set(devices)) == count
    assert all(stage.devices for stage in found)


def test_the_canary_is_drawn(kit: Any) -> None:
    first = {stages(kit, 100, 0.01, 1.0, seed=str(seed))[0].devices[0] for seed in range(30)}
    assert len(first) > 20
    assert stages(kit, 100, 0.01, 1.0) == stages(kit, 100, 0.01, 1.0)


def test_servers_come_first_the_cloud_before_the_edge(kit: Any) -> None:
    tiers = {"pi": "device", "e1": "edge", "e2": "edge", "c": "cloud"}
    found = plan_stages("seed", kit.order(), tiers)
    assert [one.text for one in found] == [
        "1 server in the cloud first, the old bundle kept", "2 servers on the edge first, the old bundle kept",
        "all 1: 1 device", "servers let go of the old bundle",
    ]  # fmt: skip
    assert [one.judged for one in found] == [False, False, True, False]
    for before, after in pairwise(found):
        assert not (before.ends and not after.ends)


def test_servers_that_need_not_keep_it_let_go_of_nothing(kit: Any) -> None:
    found = plan_stages("seed", kit.order(), {"pi": "device", "e": "edge"}, keeps=False, why_not="nothing ran there")
    assert [one.text for one in found] == ["1 server on the edge first, nothing ran there", "all 1: 1 device"]


def test_nobody_is_no_step(kit: Any) -> None:
    assert plan_stages("seed", kit.order(), {}) == ()


def test_counting_in_words() -> None:
    assert [counted(1, "device"), counted(2, "device"), counted(1, "device", more=True), counted(1200, "server")] == [
        "1 device", "2 devices", "1 more device", "1,200 servers",
    ]  # fmt: skip
