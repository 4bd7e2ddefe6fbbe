"""Every nanosecond of a request in one stage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtimes.tracing.joining import join
from edgekit.runtimes.tracing.span import Span
from edgekit.runtimes.tracing.stages import stages


def spent(*spans: Span) -> dict[tuple[str, str], float]:
    (trace,) = join(spans).values()
    found = stages(trace)
    assert sum(stage.duration_ns for stage in found) == trace.root.end_ns - trace.root.start_ns
    return {(stage.name, stage.where): stage.duration_ms for stage in found}


def test_three_tiers_in_the_order_in_which_a_request_meets_them(make) -> None:
    request = make("request", 0, 100)
    ask = make("ask", 6, 95, request)
    send = make("send", 20, 90, ask)
    edge = make("infer", 30, 80, send, "edge")
    forward = make("forward", 45, 75, edge, "edge")
    cloud = make("infer", 50, 72, forward, "cloud")
    found = spent(
        request,
        make("preprocess", 0, 6, request),
        ask,
        make("head", 7, 15, ask),
        make("encode", 15, 20, ask),
        send,
        edge,
        make("decode", 31, 33, edge, "edge"),
        make("queue", 33, 37, edge, "edge"),
        make("compute", 37, 45, edge, "edge"),
        forward,
        cloud,
        make("compute", 51, 70, cloud, "cloud"),
        make("postprocess", 96, 99, request),
    )
    assert found == {
        ("preprocess", "device"): 6,
        ("head", "device"): 8,
        ("encode", "device"): 5,
        ("uplink", "device → edge"): 10,
        ("decode", "edge"): 2,
        ("queue", "edge"): 4,
        ("compute", "edge"): 8,
        ("uplink", "edge → cloud"): 5,
        ("compute", "cloud"): 19,
        ("downlink", "cloud → edge"): 3,
        ("downlink", "edge → device"): 10,
        ("postprocess", "device"): 3,
        ("unaccounted", "device"): 1 + 5 + 1 + 1,
        ("unaccounted", "edge"): 1 + 5,
        ("unaccounted", "cloud"): 1 + 2,
    }
    assert [name for name, _ in found][:5] == ["preprocess", "head", "encode", "uplink", "decode"]


def test_a_node_that_records_nothing_is_known_by_its_answer(make) -> None:
    ask = make("ask", 0, 50)
    send = make("send", 10, 50, ask, node="edge", answered_by="cloud", node_queue_ms=3.0, node_compute_ms=12.0)
    assert spent(ask, send) == {
        ("queue", "cloud"): 3,
        ("compute", "cloud"): 12,
        ("link", "device → edge"): 25,
        ("unaccounted", "device"): 10,
    }


def test_an_answer_that_claims_more_than_it_took_is_cut(make) -> None:
    ask = make("ask", 0, 10)
    send = make("send", 0, 10, ask, node="edge", node_compute_ms=4000.0, node_queue_ms="much")
    assert spent(ask, send) == {("compute", "edge"): 10}


def test_time_beside_a_hedge_belongs_to_what_gave_the_answer(make) -> None:
    ask = make("ask", 0, 100)
    given_up = make("send", 10, 100, ask, node="edge", outcome="let go")
    assert spent(ask, given_up, make("local", 60, 100, ask)) == {
        ("unaccounted", "device"): 10,
        ("link", "device → edge"): 50,
        ("local", "device"): 40,
    }
    answered = make("send", 10, 100, ask, node="edge")
    assert spent(ask, answered, make("local", 60, 100, ask, outcome="let go")) == {
        ("unaccounted", "device"): 10,
        ("link", "device → edge"): 90,
    }


def test_a_phase_that_is_not_known_here_is_a_stage_of_its_own(make) -> None:
    infer = make("infer", 0, 10, None, "edge")
    assert spent(infer, make("resize", 2, 10, infer, "edge")) == {
        ("resize", "edge"): 8,
        ("unaccounted", "edge"): 2,
    }


def test_a_request_of_no_time_has_no_stages(make) -> None:
    assert spent(make("ask", 5, 5)) == {}


@st.composite
def forests(draw) -> list[tuple[int, int, int, str, str]]:
    """(parent's place or -1, start, duration, name, tier), whatever their clocks may say."""
    rows = [(-1, 0, draw(st.integers(0, 50)), "ask", "device")]
    names = st.sampled_from(["send", "forward", "infer", "compute", "queue", "local", "ask", "other"])
    for place in range(draw(st.integers(0, 12))):
        parent = draw(st.integers(-1, place))
        tier = draw(st.sampled_from(["device", "edge", "cloud"]))
        rows.append((parent, draw(st.integers(-60, 60)), draw(st.integers(0, 50)), draw(names), tier))
    return rows


@given(forests())
def test_stages_sum_to_the_whole_whatever_the_spans(rows) -> None:
    spans: list[Span] = []
    for number, (parent, start, duration, name, tier) in enumerate(rows):
        spans.append(
            Span(
                name=name,
                trace_id="a" * 32,
                span_id=f"{number + 1:016x}",
                parent_id=spans[parent].span_id if parent >= 0 else None,
                service=f"edgekit-{tier}",
                start_ns=10**18 + start * 10**6,
                duration_ms=duration,
            )
        )
    found = spent(*spans)
    assert all(duration_ms > 0 for duration_ms in found.values())
