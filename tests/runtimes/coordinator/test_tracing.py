"""One trace from the device to the cloud: what is recorded, under which id, and that nothing is where it is off."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import DeadlineError, OutputError, UnreachableError
from edgekit.runtimes.coordinator.connect import connect
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.peer import Request
from edgekit.runtimes.predict import Predictor
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.runtimes.traced_prediction import predict_traced
from edgekit.runtimes.tracing.files import read_files
from edgekit.runtimes.tracing.joining import Branch, Trace, join
from edgekit.runtimes.tracing.recorder import open_recorder
from edgekit.runtimes.tracing.stages import stages

# Recorded; newer SDKs also say that the id is random.
TRACEPARENT = re.compile(r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-0[13]")

# Clocks of one machine are read one after the other.
SLACK_NS = 100_000


@pytest.fixture
def recorded(tmp_path: Path, coordinate) -> Callable[..., tuple[Coordinator, Callable[[], list[Trace]]]]:
    """A coordinator on the fake clock that records, and what it has recorded once it is closed."""

    def start(*peers, **settings):
        path = tmp_path / "device.jsonl"
        coordinator = coordinate(*peers, trace=path, **settings)

        def traces() -> list[Trace]:
            coordinator.close()
            return list(join(read_files([path]).spans).values())

        return coordinator, traces

    return start


def below(trace: Trace) -> list[str]:
    return [branch.span.name for branch in trace.root.children]


def named(trace: Trace, name: str) -> list[Branch]:
    return [branch for branch in trace.branches() if branch.span.name == name]


def test_a_request_is_one_span_and_what_it_went_through_lies_below(recorded, peer, x) -> None:
    coordinator, traces = recorded(peer, policy="split@0")
    answer = coordinator.ask(x, 300)
    (trace,) = traces()
    assert trace.trace_id == answer.trace_id == answer.to_json()["trace_id"]
    assert below(trace) == ["plan", "queue", "head", "encode", "send"]
    assert trace.total_ms == pytest.approx(answer.total_ms)
    (send,) = named(trace, "send")
    assert send.duration_ms == pytest.approx(10.0), "what the peer takes"
    ask = trace.root.span
    assert (ask.name, ask.tier, trace.status) == ("ask", "device", "ok")
    assert {name: ask.attribute(name) for name in ("model", "variant", "rates", "policy", "tier", "degraded")} == {
        "model": "net",
        "variant": "split",
        "rates": [0],
        "policy": "split@0",
        "tier": "edge",
        "degraded": False,
    }
    assert (ask.attribute("bytes_sent"), ask.attribute("bytes_received")) == (answer.bytes_sent, answer.bytes_received)
    assert ask.attribute("request_id") == answer.request_id
    (encode,) = named(trace, "encode")
    assert (encode.span.attribute("rate"), encode.span.attribute("bytes")) == (0, answer.bytes_sent)


def test_each_attempt_is_a_span_of_its_own_and_the_node_is_told_which(recorded, peer, x) -> None:
    outcomes = iter([UnreachableError("broke"), 0.02])
    peer.behaviour = lambda request: next(outcomes)
    coordinator, traces = recorded(peer, policy="split@0")
    answer = coordinator.ask(x, 300)
    (trace,) = traces()
    first, second = named(trace, "send")
    assert first.span.status == "UnreachableError: broke" and not second.span.is_error
    assert [send.span.attribute("attempt") for send in (first, second)] == [1, 2]
    assert second.duration_ms == pytest.approx(20.0)
    assert below(trace) == ["plan", "queue", "head", "encode", "send", "pause", "connect", "send"]
    told = [TRACEPARENT.fullmatch((request.headers or {})["traceparent"]) for request in peer.asked]
    assert [(match["trace"], match["span"]) for match in told if match] == [
        (answer.trace_id, first.span.span_id),
        (answer.trace_id, second.span.span_id),
    ]
    assert len({request.id for request in peer.asked}) == 1


def test_a_hedge_runs_beside_the_attempt_that_is_let_go_of(recorded, peer, x) -> None:
    peer.behaviour = lambda request: None
    coordinator, traces = recorded(peer, policy="split@0")
    answer = coordinator.ask(x, 100)
    (trace,) = traces()
    (send,), (local,) = named(trace, "send"), named(trace, "local")
    assert answer.degraded and trace.status == "degraded"
    assert send.is_let_go and not local.is_let_go
    assert local.span.attribute("why") == "hedge"
    assert send.end_ns == trace.root.end_ns >= local.end_ns > local.start_ns > send.start_ns
    assert trace.root.span.attribute("reason") == answer.reason
    found = {stage.name: stage.duration_ms for stage in stages(trace)}
    assert found["local"] == pytest.approx(local.duration_ms), "it gave the answer: its time is not the link's"


def test_a_fallback_comes_after_the_node_has_failed(recorded, peer, x) -> None:
    peer.behaviour = lambda request: UnreachableError("gone")
    coordinator, traces = recorded(peer, policy="split@0")
    coordinator.ask(x, 300)
    (trace,) = traces()
    assert named(trace, "local")[0].span.attribute("why") == "fallback"
    assert all(send.span.is_error for send in named(trace, "send"))


def test_a_refinement_is_a_second_attempt_without_a_second_head(recorded, peer, unsure) -> None:
    coordinator, traces = recorded(peer, policy="split@0", refine=True)
    answer = coordinator.ask(unsure, 300)
    (trace,) = traces()
    assert [send.span.attribute("rates") for send in named(trace, "send")] == [[1], [0]]
    assert below(trace).count("encode") == 2 and below(trace).count("head") == 1
    (head,) = named(trace, "head")
    assert answer.latency_ms.get("head", 0.0) == pytest.approx(head.duration_ms), "counted once in the answer too"


def test_an_exit_that_stands_sends_nothing(recorded, peer, x) -> None:
    coordinator, traces = recorded(peer, policy="cascade")
    coordinator.ask(x, 300)
    (trace,) = traces()
    assert below(trace) == ["plan", "queue", "head", "exit"]
    assert trace.root.span.attribute("exited") is True


def test_a_request_that_fails_is_told_in_its_span(recorded, without_local, clock, fake_peer, x) -> None:
    peer = fake_peer(without_local, clock, behaviour=lambda request: None)
    coordinator, traces = recorded(peer, of=without_local, policy="split@0")
    with pytest.raises(DeadlineError, match="no answer within 50 ms"):
        coordinator.ask(x, 50)
    (trace,) = traces()
    assert trace.status == "DeadlineError" and trace.total_ms == pytest.approx(50.0)
    assert named(trace, "send")[0].is_let_go


def test_where_it_is_off_nothing_goes_along_and_nothing_is_allocated_for_it(coordinate, peer, x) -> None:
    coordinator = coordinate(peer, policy="split@0")
    tracemalloc.start()
    try:
        answers = [coordinator.ask(x, 300) for _ in range(20)]
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    of_tracing = ("*/runtimes/tracing/*", "*/coordinator/tracing.py", "*/opentelemetry/*")
    filters = [tracemalloc.Filter(True, pattern) for pattern in of_tracing]
    assert snapshot.filter_traces(filters).statistics("filename") == []
    assert snapshot.filter_traces([tracemalloc.Filter(True, "*/coordinator/*")]).statistics("filename") != []
    assert {answer.trace_id for answer in answers} == {""}
    assert [request.headers for request in peer.asked] == [None] * 20
    assert answers[0].to_json()["trace_id"] is None


OFF = """
import sys
import numpy as np
from edgekit.runtimes.coordinator.coordinator import Coordinator
with Coordinator(sys.argv[1], threads=1) as coordinator:
    coordinator.ask({"x": np.ones((1, 6), np.float32)})
print(sorted(name for name in sys.modules if name.split(".")[0] == "opentelemetry"))
"""


def test_where_it_is_off_opentelemetry_is_not_imported(bundle_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OFF, str(bundle_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_file_that_cannot_be_written_is_told_before_anything_is_asked(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Coordinator(bundle, trace=tmp_path / "file" / "device.jsonl", threads=1)


def test_a_recorder_that_is_shared_is_not_closed(coordinate, tmp_path: Path, x) -> None:
    path = tmp_path / "device.jsonl"
    recorder = open_recorder("edgekit-device", path)
    assert recorder is not None
    for _ in range(2):
        coordinator = coordinate(trace=recorder)
        coordinator.ask(x)
        coordinator.close()
    recorder.close()
    assert len(join(read_files([path]).spans)) == 2


def test_requests_in_flight_together_hang_below_the_callers_own_span(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "device.jsonl"
    recorder = open_recorder("edgekit-device", path)
    assert recorder is not None
    feeds = [{"x": np.full((1, 6), number, np.float32)} for number in range(5)]
    with Coordinator(bundle_path, threads=1, trace=recorder) as coordinator, recorder.request("batch", "net") as span:
        answers = list(coordinator.ask_many(feeds))
    recorder.close()
    assert {getattr(answer, "trace_id", "") for answer in answers} == {span.trace_id}
    (trace,) = join(read_files([path]).spans).values()
    assert (trace.root.span.name, below(trace)) == ("batch", ["ask"] * 5)


def test_one_trace_from_the_device_over_the_edge_to_the_cloud(bundle_path: Path, tmp_path: Path) -> None:
    files = {tier: tmp_path / f"{tier}.jsonl" for tier in ("device", "edge", "cloud")}
    recorder = open_recorder("edgekit-device", files["device"])
    assert recorder is not None
    with (
        Bundle.open(bundle_path) as bundle,
        Node([bundle_path], NodeOptions(tier="cloud", threads=1, port=None, trace=files["cloud"])) as cloud,
        Node([bundle_path], NodeOptions(threads=1, port=None, upstream=cloud.grpc_url, trace=files["edge"])) as edge,
        connect(bundle, edge.grpc_url, policy="three-tier@0", deadline_ms=20_000, threads=1, trace=recorder) as session,
    ):
        predictor = Predictor(bundle, session)
        sample = {"x": np.ones((1, 6), np.float32)}
        ids = [predict_traced(recorder, "net", predictor, sample)[1] for _ in range(3)]
        assert session.last is not None and session.last.tier == "cloud" and session.last.trace_id == ids[-1]
    recorder.close()

    traces = join(read_files([tmp_path]).spans)
    assert list(traces) == ids and len(set(ids)) == 3
    for trace in traces.values():
        assert trace.tiers == ("device", "edge", "cloud") and trace.others == () and trace.clocks == ()
        path = [(branch.span.name, branch.span.tier) for branch in trace.branches() if branch.children]
        assert path == [
            ("request", "device"),
            ("ask", "device"),
            ("send", "device"),
            ("infer", "edge"),
            ("forward", "edge"),
            ("infer", "cloud"),
        ]
        assert below(trace) == ["preprocess", "ask", "postprocess"]
        for branch in trace.branches():
            for child in branch.children:
                assert child.start_ns >= branch.start_ns - SLACK_NS, (child.span.name, branch.span.name)
                assert child.end_ns <= branch.end_ns + SLACK_NS, (child.span.name, branch.span.name)
        found = stages(trace)
        assert sum(stage.duration_ns for stage in found) == trace.root.end_ns - trace.root.start_ns
        links = {(stage.name, stage.where) for stage in found if stage.name in ("uplink", "downlink")}
        assert links == {
            ("uplink", "device → edge"),
            ("uplink", "edge → cloud"),
            ("downlink", "cloud → edge"),
            ("downlink", "edge → device"),
        }
        assert {("compute", "edge"), ("compute", "cloud"), ("decode", "edge"), ("decode", "cloud")} <= {
            (stage.name, stage.where) for stage in found
        }


def test_headers_do_not_change_what_is_asked() -> None:
    """A traceparent is no part of the message: the node's answer may be cached or compared by it."""
    plain = Request("split", "rest", "digest", frames=(b"frame",))
    traced = Request("split", "rest", "digest", frames=(b"frame",), headers={"traceparent": "00-0-0-00"})
    assert plain.size_bytes == traced.size_bytes == 5
