from __future__ import annotations

import pytest

from edgekit.errors import DeadlineError, UnreachableError
from edgekit.planning.link import Link
from edgekit.runtimes.coordinator.itinerary import Leg, Sent
from edgekit.runtimes.coordinator.knowledge import Knowledge
from edgekit.runtimes.peer import Reply

EDGE, ABOVE = ("device", "edge"), ("edge", "cloud")
MEASURED = {"whole": 50.0, "head": 5.0, "exit": 0.5}


@pytest.fixture
def knowledge(bundle) -> Knowledge:
    return Knowledge(bundle.manifest, MEASURED, (EDGE, ABOVE), {EDGE: Link(10, 20), ABOVE: Link(100, 10)})


def sent(elapsed_ms: float, variant: str = "split", *, error=None, **reply) -> Sent:
    answer = Reply({}, "id", "edge", size_bytes=100, sent_bytes=400, **reply) if error is None else None
    return Sent(Leg(variant, (0,)), "edge", 300, elapsed_ms, answer, error)


def latency(knowledge: Knowledge, variant: str, part: str, now: float) -> float:
    way = next(way for way in knowledge.ways(now) if way.variant == variant)
    return next(stage.latency_ms for stage in way.stages if stage.part == part)


def test_the_devices_own_parts_cost_what_was_measured(knowledge: Knowledge) -> None:
    assert latency(knowledge, "local", "whole", 0) == 50.0


def test_a_part_that_becomes_slower_is_priced_so_a_little_later(knowledge: Knowledge) -> None:
    for index in range(40):
        knowledge.timed("whole", 100.0, 0.01 * index)
    assert latency(knowledge, "local", "whole", 1.0) == pytest.approx(100, rel=0.05)


def test_a_name_that_no_way_has_is_passed_over(knowledge: Knowledge) -> None:
    knowledge.timed("encode:unheard-of", 5.0, 0.0)
    knowledge.timed("whole", 0.0, 0.0)
    assert latency(knowledge, "local", "whole", 9.0) == 50.0


def test_what_a_node_spends_queues_included_is_its_parts_price(knowledge: Knowledge) -> None:
    for index in range(40):
        knowledge.exchanged(sent(40.0, compute_ms=6.0, queue_ms=2.0), 0.01 * index)
    assert latency(knowledge, "split", "rest", 1.0) == pytest.approx(8.0, rel=0.1)


def test_the_link_learns_what_is_left(knowledge: Knowledge) -> None:
    for index in range(40):
        knowledge.exchanged(sent(100.0, compute_ms=15.0, queue_ms=5.0), 0.1 * index)
    link = knowledge.links()[EDGE]
    assert link.rtt_ms + link.transfer_ms(500) == pytest.approx(80, rel=0.1)
    assert knowledge.links()[ABOVE] == Link(100, 10)


def test_an_answer_from_above_tells_of_the_link_above(knowledge: Knowledge) -> None:
    for index in range(40):
        knowledge.exchanged(sent(130.0, "three", compute_ms=5.0, forward_ms=90.0), 0.1 * index)
    assert knowledge.links()[ABOVE].rtt_ms > 50
    assert knowledge.links()[EDGE].rtt_ms == pytest.approx(20)


def test_silence_makes_the_link_slower_and_refusals_do_not(knowledge: Knowledge) -> None:
    knowledge.exchanged(sent(900.0, error=UnreachableError("gone")), 0.0)
    assert knowledge.links()[EDGE] == Link(10, 20) or knowledge.links()[EDGE].rtt_ms == pytest.approx(20)
    knowledge.exchanged(sent(900.0, error=DeadlineError("late")), 0.1)
    link = knowledge.links()[EDGE]
    assert link.rtt_ms + link.transfer_ms(500) > 200


def test_a_link_that_is_heard_of_is_not_probed(knowledge: Knowledge) -> None:
    assert knowledge.due_probe(EDGE, 10.0) is not None
    assert knowledge.due_probe(EDGE, 10.1) is None  # one is on its way
    knowledge.pinged(EDGE, 512, 21.0, 10.2, unfinished=False)
    for index in range(4):
        knowledge.exchanged(sent(25.0), 10.5 + 0.05 * index)
    assert knowledge.due_probe(EDGE, 10.9) is None


def test_a_link_that_was_heard_of_once_is_probed_again_soon(knowledge: Knowledge) -> None:
    knowledge.exchanged(sent(25.0), 10.5)
    assert knowledge.due_probe(EDGE, 10.55) is None
    assert knowledge.due_probe(EDGE, 10.65) is not None
    assert knowledge.due_probe(EDGE, 60.0) is not None


def test_a_slow_link_is_probed_with_few_bytes(bundle) -> None:
    def size(link: Link) -> int:
        probe = Knowledge(bundle.manifest, MEASURED, (EDGE,), {EDGE: link}).due_probe(EDGE, 0.0)
        assert probe is not None
        return probe.padding_bytes

    assert (size(Link(0.01, 50)), size(Link(1000, 1))) == (512, 8192)
    assert size(Link(1, 20)) == 2500  # 20 ms of 1 Mbit/s


def test_a_link_that_is_not_in_play_is_not_probed(knowledge: Knowledge) -> None:
    assert knowledge.due_probe(("device", "cloud"), 0.0) is None


def test_a_profile_that_only_the_maker_had_is_no_hindrance(bundle, caplog) -> None:
    manifest = bundle.manifest.model_copy(update={"device": "my-own-board", "tiers": {"edge": "my-own-server"}})
    knowledge = Knowledge(manifest, MEASURED, (EDGE,))
    assert latency(knowledge, "local", "whole", 0) == 50.0
    assert knowledge.power is None
    assert "my-own-board" in caplog.text and "my-own-server" in caplog.text
