from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import DataError, OutputError, UnknownNameError, UsageError
from edgekit.planning.link import Link
from edgekit.planning.named_traces import TRACES
from edgekit.runtimes.link.traces import (
    Conditions,
    Trace,
    open_trace,
    parse_trace,
    read_trace,
    trace_named,
    write_trace,
)

UP, DOWN, FAST = Conditions(8.0, 20.0), Conditions(8.0, 20.0, up=False), Conditions(80.0, 10.0)
THREE = Trace("three", (0.0, 1.0, 3.0), (UP, DOWN, FAST), 4.0)


@pytest.mark.parametrize(("start_s", "size_bytes", "end_s"), [
    (0.0, 0, 0.0),
    (0.0, 500_000, 0.5),
    (0.5, 1_000_000, 3.05),  # half before the outage, half after it at ten times the rate
    (1.5, 1_000_000, 3.1),
    (3.9, 11_000_000, 5.0),  # the last piece goes on
])  # fmt: skip
def test_a_transfer_follows_the_pieces_and_waits_for_outages(start_s: float, size_bytes: int, end_s: float) -> None:
    assert THREE.transfer_end(start_s, size_bytes) == pytest.approx(end_s, abs=1e-9)


def test_a_looped_trace_begins_again() -> None:
    looped = THREE.looped()
    assert looped.at(4.5) == UP
    assert looped.at(9.5) == DOWN
    assert looped.transfer_end(3.5, 5_500_000) == pytest.approx(4.5)
    assert looped.transfer_end(0.0, 3 * 11_000_000) == pytest.approx(12.0)
    assert looped.next_up(5.5) == pytest.approx(7.0)


def test_a_link_that_stays_down_carries_nothing() -> None:
    dead = Trace("dead", (0.0, 1.0), (UP, DOWN), 2.0)
    assert math.isinf(dead.transfer_end(0.5, 600_000))
    assert math.isinf(dead.next_up(1.5))
    assert math.isinf(Trace("none", (0.0,), (DOWN,), 1.0, loops=True).transfer_end(0.0, 1))


def test_what_an_outage_meets_on_its_way_arrives_after_it() -> None:
    assert THREE.arrival(0.0, 100_000) == pytest.approx(0.11)
    assert THREE.arrival(0.0, 995_000) == pytest.approx(3.0)


def test_a_steady_trace_agrees_with_the_link_it_is_made_of() -> None:
    link = Link(10.0, 40.0, 0.02)
    assert 1000 * Trace.constant(Conditions.of(link)).arrival(7.0, 150_000) - 7000 == pytest.approx(
        link.one_way_ms(150_000)
    )


pieces = st.builds(Conditions, st.floats(0.1, 100.0), st.floats(0.0, 100.0), loss=st.floats(0.0, 0.5), up=st.booleans())


@given(st.lists(pieces, min_size=1, max_size=8), st.floats(0.0, 30.0), st.floats(1.0, 1e7), st.booleans())
def test_just_the_bytes_of_a_transfer_fit_between_its_start_and_its_end(
    kept: list[Conditions], start_s: float, size_bytes: float, loops: bool
) -> None:
    trace = Trace("any", tuple(float(index) for index in range(len(kept))), tuple(kept), float(len(kept)), loops)
    end_s = trace.transfer_end(start_s, size_bytes)
    if math.isfinite(end_s):
        assert trace.capacity_bytes(start_s, end_s) == pytest.approx(size_bytes, rel=1e-6, abs=1e-2)
    else:
        assert trace.capacity_bytes(start_s, start_s + 1000) < size_bytes


@pytest.mark.parametrize("name", TRACES)
def test_named_traces_last_two_minutes_and_come_back_from_csv(name: str, tmp_path: Path) -> None:
    trace = trace_named(name, seed=3)
    assert trace.duration_s == 120.0
    write_trace(trace, tmp_path / f"{name}.csv")
    assert read_trace(tmp_path / f"{name}.csv") == trace


def test_a_seed_gives_the_same_trace_on_every_machine(tmp_path: Path) -> None:
    digests = {}
    for name in TRACES:
        write_trace(trace_named(name), tmp_path / "trace.csv")
        digests[name] = hashlib.sha256((tmp_path / "trace.csv").read_bytes()).hexdigest()[:12]
    assert digests == DIGESTS
    assert trace_named("lte", seed=1) != trace_named("lte", seed=0)


def test_named_traces_are_what_they_are_called() -> None:
    lte = trace_named("lte").pieces
    assert all(2 <= piece.bandwidth_mbps <= 60 and 30 <= piece.rtt_ms <= 80 for piece in lte)
    walk = trace_named("wifi-walk")
    assert walk.at(0).bandwidth_mbps > 40
    assert walk.at(119.9).bandwidth_mbps < 2
    outages = trace_named("outages")
    ends = (*outages.time_s[1:], outages.duration_s)
    down = [end - start for start, end, piece in zip(outages.time_s, ends, outages.pieces, strict=True) if not piece.up]
    assert len(down) >= 5
    assert all(0.5 <= seconds <= 5.0 + 1e-9 for seconds in down)


@pytest.mark.parametrize(("text", "words"), [
    ("", "lacks the columns"),
    ("time_s,bandwidth_mbps\n0,1\n", "lacks the columns ['rtt_ms']"),
    ("time_s,bandwith_mbps,rtt_ms\n0,1,1\n", "did you mean 'bandwidth_mbps'"),
    ("time_s,bandwidth_mbps,rtt_ms,rtt_ms\n0,1,1,1\n", "repeats a column"),
    ("time_s,bandwidth_mbps,rtt_ms\n", "has no rows"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,1\n", "line 2: 2 fields, allowed 3"),
    ("time_s,bandwidth_mbps,rtt_ms\n1,1,1\n", "allowed 0 on the first row"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,1,1\n\n0,2,1\n", "line 4: time_s 0"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,fast,1\n", "'fast' is not a number"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,0,1\n", "allowed bandwidth above 0"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,inf,1\n", "allowed bandwidth above 0"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,nan,1\n", "allowed bandwidth above 0"),
    ("time_s,bandwidth_mbps,rtt_ms\nnan,1,1\n", "allowed 0 on the first row"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,1,1\ninf,1,1\n", "increase"),
    ("time_s,bandwidth_mbps,rtt_ms,up\n0,1,1,perhaps\n", "up 'perhaps'"),
    ("time_s,bandwidth_mbps,rtt_ms\n0,1,1\n5,,\n6,1,1\n", "after the one that ends"),
    ('time_s,bandwidth_mbps,rtt_ms\n0,"1,1\n', "is not CSV"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_trace(text, "bad", "bad.csv")
    assert words in str(caught.value)


def test_optional_columns_and_the_last_row_may_be_absent() -> None:
    trace = parse_trace("rtt_ms,time_s,bandwidth_mbps\n40,0,10\n50,2,5\n", "short", "short.csv")
    assert trace.duration_s == 4.0
    assert trace.at(3.0) == Conditions(5.0, 50.0)


def test_a_reference_is_a_file_or_a_name(tmp_path: Path) -> None:
    assert open_trace("lte") == trace_named("lte")
    with pytest.raises(UnknownNameError, match="did you mean 'lte'"):
        open_trace("lt")
    with pytest.raises(DataError, match="cannot read"):
        open_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not text"):
        open_trace(tmp_path / "binary.csv")
    with pytest.raises(OutputError, match="cannot write"):
        write_trace(THREE, tmp_path / "none" / "trace.csv")
    with pytest.raises(UsageError, match="seed -1"):
        trace_named("lte", seed=-1)


DIGESTS = {
    "steady-1": "3e86a21d8cbd",
    "steady-10": "45598410cbd5",
    "steady-100": "d7c930cf88d4",
    "lte": "6f6bac15f412",
    "wifi-walk": "34387335f148",
    "outages": "b70d73244009",
}
