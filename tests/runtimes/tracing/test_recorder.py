"""What the SDK records for us: ids given away early, callers that ask for no record, memory that is bounded."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import MissingExtraError, OutputError, UsageError
from edgekit.runtimes.tracing.files import read_file
from edgekit.runtimes.tracing.recorder import Recorder, open_recorder
from edgekit.runtimes.tracing.sinks import MAX_SPANS

CALLER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


@pytest.fixture
def recorder(tmp_path: Path):
    made = open_recorder("edgekit-edge", tmp_path / "spans.jsonl", keep=3)
    assert made is not None
    yield made
    made.close()


def record(recorder: Recorder, headers: dict[str, str], children: int = 0) -> str:
    span = recorder.open("infer", 1_000, "server", recorder.parent(headers), model="net")
    for number in range(children):
        span.add("compute", 1_000 + number, 2_000 + number)
    span.end(5_000)
    return span.trace_id


def test_without_a_file_and_an_endpoint_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert open_recorder("edgekit-edge", None) is None


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole_import = builtins.__import__

    def refuse(name: str, *rest, **named):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return whole_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match="opentelemetry-sdk") as caught:
        open_recorder("edgekit-device", tmp_path / "spans.jsonl")
    assert caught.value.hint == 'pip install "edgekit[trace]"'


def test_an_endpoint_without_its_exporter_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="not installed") as caught:
        open_recorder("edgekit-device", None)
    assert "opentelemetry-exporter-otlp-proto-http" in caught.value.hint


def test_the_folder_of_the_file_is_made(tmp_path: Path) -> None:
    recorder = open_recorder("edge", tmp_path / "traces" / "today" / "edge.jsonl")
    assert recorder is not None
    with recorder.request("request", "net"):
        pass
    recorder.close()
    assert '"name": "request"' in (tmp_path / "traces" / "today" / "edge.jsonl").read_text()


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "spans.jsonl"):
        with pytest.raises(OutputError, match="cannot write"):
            open_recorder("edgekit-device", path)


def test_a_span_lies_below_its_caller_and_holds_what_it_was_given(recorder: Recorder, tmp_path: Path) -> None:
    record(recorder, CALLER, children=1)
    recorder.close()
    compute, infer = read_file(tmp_path / "spans.jsonl").spans
    assert (infer.trace_id, infer.parent_id) == (CALLER["traceparent"][3:35], CALLER["traceparent"][36:52])
    assert (infer.service, infer.tier, infer.kind, infer.attribute("model")) == (
        "edgekit-edge",
        "edge",
        "server",
        "net",
    )
    assert (infer.start_ns, infer.end_ns, infer.status) == (1_000, 5_000, "UNSET")
    assert (compute.parent_id, compute.instance) == (infer.span_id, infer.instance) and infer.instance


def test_a_reserved_child_has_the_id_that_was_given_away(recorder: Recorder, tmp_path: Path) -> None:
    span = recorder.open("infer", 1_000, "server", recorder.parent(CALLER))
    reserved, headers = span.reserve_child()
    span.add("compute", 1_000, 2_000)
    span.add("forward", 2_000, 3_000, "client", reserved)
    span.add("encode", 3_000, 4_000)
    span.end(5_000)
    recorder.close()
    by_name = {one.name: one for one in read_file(tmp_path / "spans.jsonl").spans}
    assert by_name["forward"].span_id == f"{reserved:016x}" == headers["traceparent"][36:52]
    assert headers["traceparent"][3:35] == by_name["infer"].trace_id
    assert len({one.span_id for one in by_name.values()}) == 4


def test_a_caller_that_is_not_recorded_is_not_recorded_here_and_says_so_above(
    recorder: Recorder, tmp_path: Path
) -> None:
    span = recorder.open("infer", 1_000, "server", recorder.parent(UNSAMPLED))
    assert span.trace_id == ""
    _, headers = span.reserve_child()
    span.end(2_000)
    recorder.close()
    assert headers["traceparent"].startswith(UNSAMPLED["traceparent"][:36]) and headers["traceparent"].endswith("-00")
    assert read_file(tmp_path / "spans.jsonl").spans == ()


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "0" * 32 + "-1-01"}])
def test_a_caller_without_a_trace_gets_one_of_its_own(recorder: Recorder, headers: dict[str, str]) -> None:
    assert record(recorder, headers) != record(recorder, headers)


def test_memory_keeps_the_last_traces_and_of_each_so_many_spans(recorder: Recorder) -> None:
    ids = [record(recorder, {}, children=2) for _ in range(5)]
    assert recorder.recent is not None
    assert recorder.recent.ids() == ids[-3:]
    assert [span["name"] for span in recorder.recent.spans(ids[-1])] == ["compute", "compute", "infer"]
    assert recorder.recent.spans(ids[0]) == [] == recorder.recent.spans("no number")
    record(recorder, CALLER, children=2 * MAX_SPANS)
    assert len(recorder.recent.spans(CALLER["traceparent"][3:35])) == MAX_SPANS


def test_the_sdk_may_be_switched_off_by_its_own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    path = tmp_path / "off.jsonl"
    recorder = open_recorder("edgekit-device", path)
    assert recorder is not None
    with recorder.request("request", "net") as span:
        span.add("compute", 1_000, 2_000)
        assert (span.trace_id, span.headers(), span.reserve_child()[1]) == ("", {}, {})
    recorder.close()
    assert path.read_text() == ""


def test_an_error_inside_a_request_ends_its_span_with_it(recorder: Recorder, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), recorder.request("request", "net"):
        raise ZeroDivisionError("by nought")
    recorder.close()
    (span,) = read_file(tmp_path / "spans.jsonl").spans
    assert span.status == "ZeroDivisionError: by nought" and span.is_error


def test_several_processes_may_share_a_file(tmp_path: Path) -> None:
    """Each batch is one write at the end of the file: no line is torn by another."""
    path = tmp_path / "spans.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from edgekit.runtimes.tracing.recorder import open_recorder\n"
        "recorder = open_recorder('edgekit-' + sys.argv[2], Path(sys.argv[1]))\n"
        "for number in range(400): recorder.open('ask', 1000, note='x' * 500).end(2000 + number)\n"
        "recorder.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), tier]) for tier in ("edge", "cloud")]
    assert [process.wait(60) for process in running] == [0, 0]
    reading = read_file(path)
    assert (len(reading.spans), reading.damaged) == (800, 0)
    assert all(json.loads(one)["name"] == "ask" for one in path.read_text().splitlines())
