"""A faulty member stands out from its peers, and sound ones do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.fleet.protocol.windows import Health, LinkSeen, Window
from edgekit.fleet.telemetry.fading import Faded
from edgekit.fleet.telemetry.histogram import histogram_of
from edgekit.fleet.telemetry.peers import LEAST_PEERS, TRAITS, compare


def member(seed: int, **faults: Any) -> Faded:
    """Ten windows of a device like its peers, but for `faults`."""
    source = np.random.default_rng(seed)
    machine = 1 + 0.05 * source.standard_normal()  # no two are quite alike
    windows = []
    for number in range(10):
        count = int(faults.get("count", 60))
        slow = machine * faults.get("slow", 1.0)
        compared = int(faults.get("compared", 20))
        window = Window(
            sequence=number,
            started_at=1000.0 + 30 * number,
            seconds=30.0,
            digest="a" * 64,
            plan=faults.get("plan", "whole"),
            answered=count,
            errors=int(source.binomial(count, faults.get("errors", 0.002))),
            degraded=int(source.binomial(count, faults.get("degraded", 0.01))),
            compared=compared,
            agreed=int(source.binomial(compared, faults.get("agreement", 0.97))),
            latency=histogram_of((30 * slow * source.lognormal(0, 0.2, count)).tolist()),
            link=LinkSeen(
                bandwidth_mbps=faults.get("bandwidth", 20.0) * source.lognormal(0, 0.15),
                rtt_ms=faults.get("rtt", 30.0) * source.lognormal(0, 0.15),
                loss=faults.get("loss", 0.002),
            ),
            health=Health(temperature_c=faults.get("heat", 55.0) + 2 * source.standard_normal()),
        )
        windows.append(window)
    return Faded().add(windows, half_life_s=600)


def peers(count: int, seed: int = 0) -> dict[str, Faded]:
    return {f"pi-{index}": member(1000 * seed + index) for index in range(count)}


@pytest.mark.parametrize(
    ("fault", "traits"),
    [
        ({"slow": 2.0}, {"p50", "p95"}),
        ({"errors": 0.08}, {"errors"}),
        ({"degraded": 0.25}, {"degraded"}),
        ({"agreement": 0.7}, {"agreement"}),
        ({"heat": 82.0}, {"temperature"}),
        ({"rtt": 200.0}, {"rtt"}),
        ({"bandwidth": 2.0}, {"bandwidth"}),
        ({"loss": 0.08}, {"loss"}),
    ],
)
def test_each_fault_is_found_and_named(fault: dict[str, float], traits: set[str]) -> None:
    found = compare({**peers(20), "bad": member(99, **fault)})
    assert {one.device for one in found} == {"bad"}
    assert {one.trait for one in found} == traits


def test_the_evidence_is_shown() -> None:
    (worst, *_) = compare({**peers(20), "bad": member(99, slow=2.0)})
    assert worst.device == "bad" and worst.peers == 20
    assert worst.value == pytest.approx(2 * worst.usual, rel=0.2)
    assert 1.0 < worst.spread < 1.3 and worst.score > 5


def test_better_than_the_others_is_no_fault() -> None:
    assert compare({**peers(20), "quick": member(99, slow=0.4, errors=0.0, heat=35.0, bandwidth=400.0)}) == []


def test_sound_members_are_seldom_suspected() -> None:
    """40 groups of 20 devices, nine traits each: 7,200 comparisons."""
    suspected = sum(len(compare(peers(20, seed=seed))) for seed in range(1, 41))
    assert suspected <= 1


def test_a_few_requests_do_not_make_a_suspect() -> None:
    """One error in six requests is chance; one in six of six hundred is not."""
    few = member(99, count=6, errors=1 / 6, compared=0)
    assert [one for one in compare({**peers(20), "few": few}) if one.trait == "errors" and one.score > 8] == []
    assert "errors" in {one.trait for one in compare({**peers(20), "many": member(99, errors=1 / 6)})}


def test_without_peers_there_is_no_comparison() -> None:
    assert compare({**peers(LEAST_PEERS - 1), "bad": member(99, slow=5.0)}) == []
    assert compare({}) == []


def test_who_works_by_another_plan_is_compared_with_its_likes() -> None:
    away = {f"split-{index}": member(500 + index, slow=3.0, plan="split") for index in range(8)}
    assert compare({**peers(20), **away}) == [], "a split is slower for a reason"
    found = compare({**peers(20), **away, "bad": member(99, slow=9.0, plan="split")})
    assert {one.device for one in found} == {"bad"}


def test_half_of_the_peers_may_be_odd() -> None:
    """The median is what most are: not the few that are broken."""
    broken = {f"bad-{index}": member(700 + index, slow=4.0) for index in range(6)}
    assert {one.device for one in compare({**peers(20), **broken})} == set(broken)


def test_peers_that_are_all_alike_do_not_make_trifles_faults() -> None:
    same = member(1)
    assert compare(dict.fromkeys((f"pi-{index}" for index in range(20)), same)) == []
    assert compare({**dict.fromkeys((f"pi-{index}" for index in range(20)), same), "near": member(2)}) == []


def test_traits_have_names_of_their_own() -> None:
    assert len({trait.name for trait in TRAITS}) == len(TRAITS)
