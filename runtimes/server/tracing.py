"""OpenTelemetry traces of a node: a span for each request, children for what it went through.

W3C's `traceparent` of the caller is the parent. The upstream is given that of the span `forward`, so that its spans
hang below the time in which it was waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, UnknownNameError
from edgekit.runtimes.protocol.status import error_kind
from edgekit.runtimes.tracing.recorder import Recorder, offset_ns, open_recorder
from edgekit.runtimes.tracing.sinks import RecentTraces

# Traces that a node keeps in memory, for GET /v2/traces.
KEPT = 256

Phases = Iterable[tuple[str, int, int]]

_FORWARD = "forward"


class Trace:
    """One request's span, open. `headers` make the upstream's spans children of its phase `forward`."""

    def __init__(self, recorder: Recorder, offset: int, headers: Mapping[str, str], model: str, started: int) -> None:
        self._offset_ns = offset
        self._span = recorder.open("infer", started + offset, "server", recorder.parent(headers), model=model)
        self._forward_id, self.headers = self._span.reserve_child()

    def finish(self, ended_ns: int, phases: Phases, error: EdgekitError | None) -> None:
        """`phases`: (name, start, end) on `time.perf_counter_ns`'s clock. What was forwarded in several calls is one
        span from the first to the last: they all went under its id."""
        forwards = []
        for name, start, end in phases:
            if name == _FORWARD:
                forwards.append((start, end))
            else:
                self._span.add(name, start + self._offset_ns, end + self._offset_ns)
        if forwards:
            start, end = min(start for start, _ in forwards), max(end for _, end in forwards)
            self._span.add(
                _FORWARD,
                start + self._offset_ns,
                end + self._offset_ns,
                "client",
                self._forward_id,
                calls=len(forwards) if len(forwards) > 1 else None,
            )
        failure = f"{error_kind(error)}: {error.message}" if error is not None else ""
        self._span.end(ended_ns + self._offset_ns, failure)


class Tracer:
    """Made by `open_tracer`. `recorder.recent` holds the last `KEPT` traces."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def start(self, headers: Mapping[str, str], model: str, started_ns: int) -> Trace:
        """`started_ns` on `time.perf_counter_ns`'s clock."""
        return Trace(self.recorder, offset_ns(time.perf_counter_ns), headers, model, started_ns)

    def close(self) -> None:
        """What is recorded is written first."""
        self.recorder.close()


def open_tracer(node: str, file: Path | None) -> Tracer | None:
    """None where neither `file` nor the environment asks for traces. Raises MissingExtraError, OutputError,
    UsageError."""
    recorder = open_recorder(node, file, keep=KEPT)
    return Tracer(recorder) if recorder is not None else None


def kept_spans(recent: RecentTraces, trace_id: str = "") -> dict[str, Any]:
    """Of one trace, or of all that are kept, the oldest first. Raises UnknownNameError for one that is not."""
    held = recent.ids()
    if trace_id and trace_id not in held:
        raise UnknownNameError("trace", trace_id, held)
    return {"spans": [span for one in ([trace_id] if trace_id else held) for span in recent.spans(one)]}
