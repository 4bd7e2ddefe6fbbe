"""One request under every kind of fault, on a clock that passes only while somebody waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.errors import (
    AuthenticationError,
    DeadlineError,
    FrameError,
    InputError,
    MismatchError,
    OverloadedError,
    SessionError,
    UnreachableError,
)
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.peer import UpstreamError


def assert_right(answer: Answer, x: dict[str, np.ndarray], truth: Any) -> None:
    # float16 on the wire at rate 1: 2^-11 of features up to 2, times six weights of up to 5
    tolerance = 0.05 if answer.rates and max(answer.rates) else 1e-4
    np.testing.assert_allclose(answer.outputs["logits"], truth(x["x"]), atol=tolerance)


def test_the_planned_answer_comes_from_the_node_and_says_so(coordinate, peer, x, truth) -> None:
    answer = coordinate(peer, policy="split@0").ask(x, 300)
    assert (answer.tier, answer.variant, answer.rate, answer.degraded) == ("edge", "split", 0, False)
    assert answer.bytes_sent > 0
    assert {"network", "compute"} <= answer.latency_ms.keys()
    assert_right(answer, x, truth)


def test_a_request_takes_as_long_as_its_stages(coordinate, peer, x) -> None:
    answer = coordinate(peer, policy="split@0", takes_s=0.004).ask(x, 300)
    assert answer.total_ms == pytest.approx(4 + 10, abs=0.01)  # the pool's task, then the node's delay
    assert answer.latency_ms["network"] == pytest.approx(9, abs=0.01)  # of 10 ms the node computed for 1


@pytest.mark.parametrize("policy", ["offload@0", "split@0", "three-tier", "split:deep@0"])
def test_every_way_gives_the_same_outputs(coordinate, peer, x, truth, policy: str) -> None:
    assert_right(coordinate(peer, policy=policy).ask(x, 300), x, truth)


def test_a_silent_node_is_answered_for_here_before_the_deadline(coordinate, peer, clock, x, truth) -> None:
    peer.behaviour = lambda request: None
    coordinator = coordinate(peer, policy="split@0")
    started = clock.now()
    answer = coordinator.ask(x, 300)
    assert (answer.tier, answer.variant, answer.degraded) == ("device", "local", True)
    assert "deadline was near" in answer.reason
    assert clock.now() - started < 0.3
    assert clock.now() - started > 0.265  # not a moment earlier than need be
    assert_right(answer, x, truth)


def test_a_deadline_that_nears_before_anything_was_sent_says_so(coordinate, peer, x) -> None:
    coordinator = coordinate(peer, policy="split@0", takes_s=0.004)
    coordinator.parts.local_runs.add(280.0)  # the local answer has to begin before the head is done
    peer.behaviour = lambda request: None
    answer = coordinator.ask(x, 300)
    assert answer.degraded
    assert answer.reason == "the deadline was near and nothing was sent yet"


def test_a_node_that_is_down_is_named_though_nothing_was_missed(coordinate, peer, x) -> None:
    peer.handshake_error = UnreachableError("fake://node: connection refused")
    coordinator = coordinate(peer, policy="auto")
    answer = coordinator.ask(x, 300)
    assert answer.tier == "device"
    assert answer.silent == answer.to_json()["silent"] == {"edge": "fake://node: connection refused"}


def test_where_all_nodes_answer_none_is_called_silent(coordinate, peer, x) -> None:
    assert coordinate(peer, policy="split@0").ask(x, 300).silent == {}


def test_a_machine_that_was_late_starts_the_local_answer_earlier(coordinate, peer, clock, x) -> None:
    peer.behaviour = lambda request: None
    coordinator = coordinate(peer, policy="split@0")
    coordinator.parts.lateness.add(20.0)
    started = clock.now()
    assert coordinator.ask(x, 300).degraded
    assert clock.now() - started == pytest.approx(0.251, abs=0.002)  # 30 ms for the margin, 20 for what happened
    for _ in range(100):
        coordinator.parts.lateness.add(0.0)
    started = clock.now()
    coordinator.route("split").succeeded()
    coordinator.ask(x, 300)
    assert clock.now() - started == pytest.approx(0.271, abs=0.002)


def test_of_node_and_local_answer_the_first_one_counts(coordinate, peer, x) -> None:
    # The local run starts 30 ms before the deadline and takes 1 ms: the node comes between the two.
    peer.behaviour = lambda request: 0.2695
    answer = coordinate(peer, policy="split@0").ask(x, 300)
    assert (answer.tier, answer.degraded, answer.reason) == ("edge", False, "")


def test_without_a_local_variant_the_deadline_is_an_error_that_says_so(
    coordinate, fake_peer, without_local, clock, x
) -> None:
    silent = fake_peer(without_local, clock, behaviour=lambda request: None)
    coordinator = coordinate(silent, of=without_local, policy="split@0")
    started = clock.now()
    with pytest.raises(DeadlineError, match="within 300 ms"):
        coordinator.ask(x, 300)
    assert clock.now() - started == pytest.approx(0.3)


def test_a_deadline_too_short_for_anything_is_an_error(coordinate, peer, clock, x) -> None:
    coordinator = coordinate(peer, policy="split@0", takes_s=0.05)
    started = clock.now()
    with pytest.raises(DeadlineError):
        coordinator.ask(x, 5)
    assert clock.now() - started == pytest.approx(0.005)


def test_a_broken_connection_is_tried_again_under_the_same_id(coordinate, peer, x, truth) -> None:
    outcomes = iter([UnreachableError("broke"), UnreachableError("broke again"), 0.01])
    peer.behaviour = lambda request: next(outcomes)
    answer = coordinate(peer, policy="split@0").ask(x, 300)
    assert (answer.tier, answer.degraded, answer.attempts) == ("edge", False, 3)
    assert len({request.id for request in peer.asked}) == 1
    assert_right(answer, x, truth)


def test_after_a_broken_connection_hands_are_shaken_before_the_next_request(coordinate, peer, x) -> None:
    outcomes = iter([UnreachableError("broke"), 0.01])
    peer.behaviour = lambda request: next(outcomes)
    coordinator = coordinate(peer, policy="split@0")
    before = peer.handshakes
    coordinator.ask(x, 300)
    assert peer.handshakes == before + 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (FrameError("damaged"), 4),
        (UnreachableError("gone"), 4),
        (InputError("garbled"), 2),
        (OverloadedError("full"), 1),
        (DeadlineError("late"), 1),
        (UpstreamError("no cloud"), 1),
        (AuthenticationError("who?"), 1),
    ],
)
def test_an_error_that_stays_ends_in_a_local_answer(coordinate, peer, x, truth, error, attempts: int) -> None:
    peer.behaviour = lambda request: error
    answer = coordinate(peer, policy="split@0").ask(x, 1000)
    assert (answer.tier, answer.degraded) == ("device", True)
    assert error.message in answer.reason
    assert len(peer.asked) <= attempts
    assert_right(answer, x, truth)


def test_a_node_with_another_bundle_is_never_asked(coordinate, fake_peer, another, clock, x, truth) -> None:
    skewed = fake_peer(another, clock)
    answer = coordinate(skewed, policy="split@0").ask(x, 300)
    assert (answer.tier, answer.degraded) == ("device", True)
    assert "another bundle" in answer.reason
    assert skewed.asked == []
    assert_right(answer, x, truth)


def test_a_node_that_changes_back_is_asked_again(coordinate, fake_peer, bundle, another, clock, x) -> None:
    node = fake_peer(another, clock)
    coordinator = coordinate(node, policy="split@0", recheck_s=5.0)
    assert coordinator.ask(x, 300).degraded
    node.bundle = bundle
    assert coordinator.ask(x, 300).degraded  # not due yet
    clock.advance(6)
    coordinator.ask(x, 300)  # shakes hands, and does not wait for it
    clock.advance(0.1)
    answer = coordinator.ask(x, 300)
    assert (answer.tier, answer.degraded) == ("edge", False)


def test_a_node_restarted_with_another_bundle_gives_no_answer(coordinate, peer, another, clock, x, truth) -> None:
    coordinator = coordinate(peer, policy="split@0")
    assert coordinator.ask(x, 300).tier == "edge"
    peer.bundle, peer._sessions = another, {}

    def refuse(request: Any) -> Any:
        return MismatchError("of another plan")

    peer.behaviour = refuse
    answer = coordinator.ask(x, 300)
    assert (answer.tier, answer.degraded) == ("device", True)
    assert_right(answer, x, truth)


@pytest.mark.parametrize(
    "twist",
    [
        lambda reply: replace(reply, id="another request's"),
        lambda reply: replace(reply, outputs={}),
        lambda reply: replace(reply, outputs={"logits": np.zeros((1, 5), np.float32)}),
        lambda reply: replace(reply, outputs={"logits": np.zeros((1, 3), np.float64)}),
    ],
    ids=["id", "no outputs", "shape", "dtype"],
)
def test_what_does_not_answer_the_question_is_no_answer(coordinate, peer, x, truth, twist) -> None:
    peer.twist = twist
    answer = coordinate(peer, policy="split@0").ask(x, 300)
    assert (answer.tier, answer.degraded) == ("device", True)
    assert_right(answer, x, truth)


def test_a_confident_exit_ends_it_here(coordinate, peer, x) -> None:
    answer = coordinate(peer, policy="cascade").ask({"x": 50 * x["x"]}, 300)
    assert (answer.tier, answer.exited, answer.degraded) == ("device", True, False)
    assert answer.confidence is not None and answer.confidence >= 0.99
    assert peer.asked == []


def test_an_unsure_exit_goes_up(coordinate, peer, unsure, truth) -> None:
    answer = coordinate(peer, policy="cascade").ask(unsure, 300)
    assert (answer.exited, answer.degraded) == (False, False)
    assert peer.asked
    assert_right(answer, unsure, truth)


def test_an_unsure_edge_sends_the_cascade_on_to_the_cloud(coordinate, fake_peer, bundle, clock, unsure, truth) -> None:
    edge, cloud = fake_peer(bundle, clock), fake_peer(bundle, clock, tier="cloud")
    answer = coordinate(edge, cloud, policy="cascade").ask(unsure, 300)
    assert [request.variant for request in edge.asked + cloud.asked] == ["early", "late"]
    assert (answer.tier, answer.degraded) == ("cloud", False)
    assert_right(answer, unsure, truth)


def test_a_cascade_that_loses_the_cloud_gives_the_edges_answer(coordinate, fake_peer, bundle, clock, unsure) -> None:
    edge = fake_peer(bundle, clock)
    cloud = fake_peer(bundle, clock, tier="cloud", behaviour=lambda request: None)
    answer = coordinate(edge, cloud, policy="cascade").ask(unsure, 300)
    assert (answer.tier, answer.degraded) == ("edge", True)


def test_refining_asks_coarsely_first_and_finely_where_unsure(coordinate, peer, unsure) -> None:
    coordinator = coordinate(peer, policy="split@0", refine=True)
    sure = {"x": np.full((1, 6), 20, np.float32)}
    assert coordinator.ask(sure, 300).rates == (1,)
    answer = coordinator.ask(unsure, 300)
    assert (answer.rates, answer.degraded) == ((0,), False)
    assert answer.bytes_sent == sum(request.size_bytes for request in peer.asked[1:])
    assert len({request.id for request in peer.asked}) == 3


def test_a_late_answer_is_given_to_nobody(coordinate, peer, clock, x) -> None:
    peer.behaviour = lambda request: 1.0
    coordinator = coordinate(peer, policy="split@0")
    first = coordinator.ask(x, 100)
    peer.behaviour = lambda request: 0.01
    other = {"x": x["x"] + 1}
    second = coordinator.ask(other, 300)
    clock.advance(2)
    assert first.degraded and not second.degraded
    np.testing.assert_allclose(second.outputs["logits"], first.outputs["logits"] + 2 * _gain_sum(), atol=1e-4)


def _gain_sum() -> np.ndarray:
    generator = np.random.default_rng(3)
    return (generator.standard_normal((6, 3)).astype(np.float32) * 2).sum(0)


def test_a_failing_local_part_leaves_the_node_its_chance(coordinate, peer, x, bundle) -> None:
    peer.behaviour = lambda request: 0.28
    coordinator = coordinate(peer, policy="split@0")
    coordinator.parts._sessions["whole"].close()
    answer = coordinator.ask(x, 300)
    assert (answer.tier, answer.degraded) == ("edge", False)


def test_nothing_left_is_an_error_that_tells_all_reasons(coordinate, peer, x) -> None:
    peer.behaviour = lambda request: OverloadedError("queue full")
    coordinator = coordinate(peer, policy="split@0")
    coordinator.parts._sessions["whole"].close()
    with pytest.raises((OverloadedError, SessionError), match=r"queue full.*local run failed"):
        coordinator.ask(x, 300)
