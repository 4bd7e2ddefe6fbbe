"""Trees of spans from several files, and clocks that do not agree."""

from __future__ import annotations

from edgekit.runtimes.tracing.joining import Trace, join


def joined(*spans) -> Trace:
    (trace,) = join(spans).values()
    return trace


def test_spans_of_three_tiers_make_one_tree_whatever_their_order(make) -> None:
    ask = make("ask", 0, 100)
    send = make("send", 20, 90, ask)
    edge = make("infer", 30, 80, send, "edge")
    forward = make("forward", 40, 70, edge, "edge")
    cloud = make("infer", 45, 65, forward, "cloud")
    trace = joined(cloud, edge, ask, forward, send)
    walked = [(branch.span.name, branch.span.tier, branch.depth) for branch in trace.root.walk()]
    assert walked == [
        ("ask", "device", 0),
        ("send", "device", 1),
        ("infer", "edge", 2),
        ("forward", "edge", 3),
        ("infer", "cloud", 4),
    ]
    assert trace.tiers == ("device", "edge", "cloud") and trace.clocks == () and trace.others == ()
    assert trace.total_ms == 100


def test_a_span_that_two_sources_give_counts_once(make) -> None:
    ask = make("ask", 0, 10)
    head = make("head", 1, 2, ask)
    assert len(list(joined(ask, head, head, ask).root.walk())) == 2


def test_traces_come_by_their_beginning(make) -> None:
    late, early = make("ask", 50, 60, trace="b" * 32), make("ask", 1, 99, trace="c" * 32)
    assert list(join([late, early])) == ["c" * 32, "b" * 32]


def test_self_time_is_what_no_child_covers_even_where_children_overlap(make) -> None:
    ask = make("ask", 0, 100)
    trace = joined(ask, make("send", 10, 60, ask), make("local", 40, 80, ask), make("plan", 2, 5, ask))
    assert trace.root.self_ms == 100 - 70 - 3


def test_a_clock_that_is_off_is_moved_to_the_middle_of_what_waited_for_it(make) -> None:
    ask = make("ask", 0, 100)
    send = make("send", 20, 90, ask)
    # In truth 30 to 70; the edge's clock is 4 s ahead, and its links are as slow up as down.
    edge = make("infer", 4035, 4075, send, "edge")
    compute = make("compute", 4040, 4060, edge, "edge")
    trace = joined(ask, send, edge, compute)
    (clock,) = trace.clocks
    assert (clock.tier, clock.offset_ms, clock.uncertainty_ms) == ("edge", -4000.0, 15.0)
    placed = {branch.span.name: branch for branch in trace.root.walk()}
    start = trace.root.start_ns
    assert (placed["infer"].start_ns - start, placed["infer"].end_ns - start) == (35_000_000, 75_000_000)
    assert placed["compute"].start_ns - start == 40_000_000, "all spans of a process move alike"


def test_the_cloud_is_placed_on_the_clock_of_an_edge_that_was_moved(make) -> None:
    ask = make("ask", 0, 100)
    send = make("send", 0, 100, ask)
    edge = make("infer", -5000 + 20, -5000 + 80, send, "edge")
    forward = make("forward", -5000 + 30, -5000 + 70, edge, "edge")
    cloud = make("infer", 700 + 40, 700 + 60, forward, "cloud")
    trace = joined(ask, send, edge, forward, cloud)
    assert [(clock.tier, clock.offset_ms) for clock in trace.clocks] == [("edge", 5000.0), ("cloud", -700.0)]
    assert all(
        child.start_ns >= branch.start_ns and child.end_ns <= branch.end_ns
        for branch in trace.root.walk()
        for child in branch.children
    )


def test_a_clock_that_may_be_right_is_left_alone(make) -> None:
    ask = make("ask", 0, 100)
    send = make("send", 20, 90, ask)
    trace = joined(ask, send, make("infer", 21, 60, send, "edge"))
    assert trace.clocks == ()


def test_the_tightest_of_several_attempts_sets_the_clock(make) -> None:
    ask = make("ask", 0, 1000)
    loose, tight = make("send", 0, 400, ask), make("send", 500, 600, ask)
    first, second = make("infer", 10_100, 10_200, loose, "edge"), make("infer", 10_510, 10_590, tight, "edge")
    (clock,) = joined(ask, loose, tight, first, second).clocks
    assert (clock.offset_ms, clock.uncertainty_ms) == (-10_000.0, 10.0)


def test_an_attempt_that_was_given_up_says_nothing_of_the_clock(make) -> None:
    """Its node went on after nobody waited: that is no reason to move it."""
    ask = make("ask", 0, 100)
    send = make("send", 20, 90, ask, outcome="let go")
    assert joined(ask, send, make("infer", 25, 500, send, "edge")).clocks == ()
    # Where nothing but that attempt is known and it cannot be so, the earliest that it can have been.
    (clock,) = joined(ask, send, make("infer", 9000, 9500, send, "edge")).clocks
    assert (clock.offset_ms, clock.uncertainty_ms) == (-8980.0, None)


def test_spans_whose_parent_is_in_no_file_stand_beside_the_whole(make) -> None:
    ask = make("ask", 0, 100)
    send = make("send", 20, 90, ask)
    missing = make("infer", 30, 80, send, "edge")
    cloud = make("infer", 40, 60, missing, "cloud")
    trace = joined(cloud, ask, send)
    assert trace.root.span == ask and [other.span for other in trace.others] == [cloud]


def test_the_devices_span_is_the_whole_though_another_is_longer(make) -> None:
    missing = make("infer", 0, 0)
    ask, cloud = make("ask", 0, 10), make("infer", 0, 500, missing, "cloud")
    assert joined(cloud, ask).root.span == ask


def test_parents_in_a_ring_are_cut_and_nothing_is_lost(make) -> None:
    first = make("ask", 0, 10)
    second = make("send", 1, 9, first)
    ring = first.model_copy(update={"parent_id": second.span_id})
    trace = joined(ring, second)
    assert [branch.span.name for branch in trace.branches()] == ["ask", "send"]
    itself = second.model_copy(update={"parent_id": second.span_id})
    assert [branch.span.name for branch in joined(itself).branches()] == ["send"]


def test_status_is_the_roots_error_or_degraded_or_ok(make) -> None:
    assert joined(make("ask", 0, 1)).status == "ok"
    assert joined(make("ask", 0, 1, degraded=True)).status == "degraded"
    assert joined(make("ask", 0, 1, status="DeadlineError: no answer within 5 ms")).status == "DeadlineError"
