from __future__ import annotations

import threading

import numpy as np
import pytest

from edgekit.errors import InputError, PlanError, SessionError, UnreachableError, UsageError
from edgekit.planning.link import Link
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.coordinator.parts import QUICK_RUNS
from edgekit.runtimes.peer import NodeInfo


def test_without_nodes_it_runs_here(coordinate, x, truth) -> None:
    answer = coordinate().ask(x)
    assert (answer.tier, answer.variant, answer.degraded, answer.bytes_sent) == ("device", "local", False, 0)
    np.testing.assert_allclose(answer.outputs["logits"], truth(x["x"]), atol=1e-4)


def test_quick_parts_are_timed_often_enough_to_tell_them_apart(coordinate) -> None:
    counts = {name: len(times) for name, times in coordinate().parts.durations.items()}
    assert counts
    assert all(count >= QUICK_RUNS for count in counts.values()), counts


def test_hands_are_shaken_before_the_first_request(coordinate, peer) -> None:
    coordinate(peer, policy="split@0")
    assert peer.handshakes == 1 and peer.asked == []


def test_a_request_waits_for_the_handshake_after_a_broken_connection(bundle, clock, fake_peer, coordinate, x) -> None:
    outcomes = iter([UnreachableError("broke"), 0.01])
    breaking = fake_peer(bundle, clock, behaviour=lambda request: next(outcomes))
    answer = coordinate(breaking, policy="split@0").ask(x, 300)
    assert answer.tier == "edge" and answer.latency_ms["connect"] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"y": np.zeros((1, 6), np.float32)},
        {"x": np.zeros((1, 7), np.float32)},
        {"x": np.zeros((1, 6))},
        {"x": "photo.jpg"},
    ],
    ids=["none", "name", "shape", "dtype", "path"],
)
def test_feeds_that_do_not_fit_are_input_errors_and_go_nowhere(coordinate, peer, feeds) -> None:
    with pytest.raises(InputError, match="allowed"):
        coordinate(peer, policy="split@0").ask(feeds)
    assert peer.asked == []


@pytest.mark.parametrize("deadline_ms", [0.0, -1.0, 1.1e9, float("inf"), float("nan")])
def test_a_deadline_that_cannot_be_is_a_usage_error(coordinate, x, deadline_ms: float) -> None:
    with pytest.raises(UsageError, match="deadline"):
        coordinate().ask(x, deadline_ms)


def test_a_dead_node_is_left_alone_and_found_again(coordinate, peer, clock, x) -> None:
    coordinator = coordinate(peer, policy="split@0")
    peer.behaviour = lambda request: UnreachableError("gone")
    peer.handshake_error = UnreachableError("gone")
    for _ in range(3):
        assert coordinator.ask(x, 300).degraded
    assert coordinator.states == {"edge": "open"}
    asked, shaken = len(peer.asked), peer.handshakes
    for _ in range(5):
        assert coordinator.ask(x, 300).total_ms < 5  # nothing is waited for
    assert (len(peer.asked), peer.handshakes) == (asked, shaken)
    peer.behaviour = peer.handshake_error = None
    clock.advance(1.0)
    assert coordinator.ask(x, 300).degraded  # the trial is a handshake beside it
    clock.advance(0.1)
    assert coordinator.ask(x, 300).tier == "edge"


def test_a_variant_that_the_node_lacks_is_no_reason_to_be_degraded(coordinate, peer, bundle, x) -> None:
    plans = {"split": bundle.manifest.plan_digest("split")}
    peer.info = NodeInfo("node", bundle.digest, plans, {})
    answer = coordinate(peer, policy="auto").ask(x, 300)
    assert not answer.degraded


@pytest.mark.parametrize(
    ("plans", "codecs"),
    [({"split": "0" * 64}, {}), (None, {"plain-scaled": "0" * 64}), ({}, {})],
    ids=["plan", "codec", "nothing"],
)
def test_each_digest_that_differs_keeps_requests_away(coordinate, peer, bundle, x, plans, codecs) -> None:
    own = {"split": bundle.manifest.plan_digest("split")}
    peer.info = NodeInfo("node", "f" * 64, own if plans is None else plans, codecs)
    answer = coordinate(peer, policy="split@0").ask(x, 300)
    assert (answer.tier, answer.degraded) == ("device", True)
    assert peer.asked == []


def test_links_are_learnt_from_requests_without_what_the_node_spent(coordinate, peer, x) -> None:
    peer.behaviour = lambda request: 0.051  # of which the node computes for 1 ms
    coordinator = coordinate(peer, policy="split@0", links={("device", "edge"): Link(10, 5)}, probes=False)
    for _ in range(20):
        coordinator.ask(x, 300)
    assert coordinator.links["device", "edge"].rtt_ms == pytest.approx(50, rel=0.2)


def test_a_silent_link_is_probed_now_and_then(coordinate, peer, clock, x) -> None:
    coordinator = coordinate(peer, policy="auto")
    before = len(peer.pings)
    for _ in range(250):
        assert coordinator.ask(x, 300).tier == "device"
        clock.advance(0.1)
    assert 1 <= len(peer.pings) - before <= 30  # in 25 s
    assert all(512 <= size <= 32_768 for size in peer.pings)


@pytest.mark.parametrize("settings", [{"policy": "auto", "probes": False}, {"policy": "local"}])
def test_nothing_is_probed_where_that_is_not_wanted(coordinate, peer, clock, x, settings) -> None:
    coordinator = coordinate(peer, **settings)
    for _ in range(10):
        coordinator.ask(x, 300)
        clock.advance(5)
    assert peer.pings == []


def test_a_policy_that_needs_a_node_is_refused_without_one(bundle, clock) -> None:
    with pytest.raises(PlanError, match="local"):
        Coordinator(bundle, policy="split", threads=1)


def test_after_closing_nothing_is_answered(coordinate, peer, x) -> None:
    coordinator = coordinate(peer, policy="split@0")
    coordinator.close()
    with pytest.raises(SessionError, match="closed"):
        coordinator.ask(x)


def test_a_constructor_that_fails_leaves_no_thread(bundle) -> None:
    before = threading.active_count()
    with pytest.raises(PlanError):
        Coordinator(bundle, policy="three-tier", threads=1)
    assert threading.active_count() == before


def test_many_are_answered_in_order_and_a_bad_one_in_its_place(bundle, truth) -> None:
    rows = [np.random.default_rng(seed).random((1, 6), np.float32) for seed in range(9)]
    rows[4] = np.zeros((1, 7), np.float32)
    with Coordinator(bundle, threads=1) as coordinator:
        outcomes = list(coordinator.ask_many(({"x": row} for row in rows), in_flight=3))
    assert isinstance(outcomes.pop(4), InputError)
    rows.pop(4)
    for row, outcome in zip(rows, outcomes, strict=True):
        np.testing.assert_allclose(outcome.outputs["logits"], truth(row), atol=1e-4)


def test_no_more_are_taken_than_may_be_in_flight(bundle) -> None:
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield {"x": np.zeros((1, 6), np.float32)}

    with Coordinator(bundle, threads=1) as coordinator:
        outcomes = coordinator.ask_many(endless(), in_flight=3)
        for count in range(1, 6):
            next(outcomes)
            assert len(taken) == count + 2
        outcomes.close()


@pytest.mark.parametrize("in_flight", [0, 9])
def test_a_flight_that_cannot_be_is_a_usage_error(bundle, in_flight: int) -> None:
    with Coordinator(bundle, threads=1) as coordinator, pytest.raises(UsageError):
        next(coordinator.ask_many([], in_flight=in_flight))


def test_sending_overlaps_computing(bundle, coordinate, fake_peer, clock) -> None:
    """Structure rather than time: the second request is sent before the first is answered."""
    waiting: list[object] = []
    release = threading.Event()
    with Coordinator(bundle, threads=1) as coordinator:
        original = coordinator.parts.run_local

        def watched(variant, feeds):
            waiting.append(feeds)
            if len(waiting) == 2:
                release.set()
            assert release.wait(10)
            return original(variant, feeds)

        coordinator.parts.run_local = watched
        answers = list(coordinator.ask_many([{"x": np.zeros((1, 6), np.float32)}] * 2, in_flight=2))
    assert len(answers) == 2


def test_a_node_that_comes_back_is_told_of_so_that_an_outbox_can_be_emptied(coordinate, peer, clock, x) -> None:
    back: list[str] = []
    coordinator = coordinate(peer, policy="split@0", on_reconnect=back.append)
    assert back == ["edge"]
    peer.behaviour = peer.handshake_error = None
    peer.behaviour = lambda request, outcomes=iter([UnreachableError("broke"), 0.01]): next(outcomes)
    coordinator.ask(x, 300)
    clock.advance(0.1)
    assert back == ["edge", "edge"]


def test_a_listener_that_fails_harms_no_request(coordinate, peer, x) -> None:
    def fail(tier: str) -> None:
        raise ValueError("full")

    assert coordinate(peer, policy="split@0", on_reconnect=fail).ask(x, 300).tier == "edge"
