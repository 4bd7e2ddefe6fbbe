"""Where ended spans go: a file of JSON lines, a collector by OTLP, the memory of a node."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import OutputError, UsageError
from edgekit.runtimes.tracing.span import NS_PER_MS

# Of one trace in memory: a trace id that a caller never changes must not grow without end.
MAX_SPANS = 1024


def describe(span: Any) -> dict[str, Any]:
    """An ended span of the SDK as the object that `Span` reads."""
    context = span.get_span_context()
    resource = span.resource.attributes
    return {
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "service": resource.get("service.name"),
        "instance": resource.get("service.instance.id"),
        "kind": span.kind.name.lower(),
        "start_ns": span.start_time,
        "duration_ms": (span.end_time - span.start_time) / NS_PER_MS,
        "status": span.status.description or span.status.status_code.name,
        **dict(span.attributes or {}),
    }


def file_exporter(path: Path) -> Any:
    """Appends one object a span; its folder is made. Each batch is one write, so that several processes may share it.

    Raises OutputError."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab", buffering=0)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose a writable --trace file") from error

    class JsonLines(SpanExporter):  # type: ignore[misc]
        def export(self, spans: Sequence[Any]) -> Any:
            lines = "".join(json.dumps(describe(span)) + "\n" for span in spans)
            try:
                stream.write(lines.encode())
            except OSError:  # the disk is full: the SDK counts what is lost, and requests go on
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            stream.close()

    return JsonLines()


def otlp_exporter() -> Any:
    """Raises UsageError where its package is not here."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise UsageError(
            "the environment names an OTLP endpoint, and its exporter is not installed",
            hint="pip install opentelemetry-exporter-otlp-proto-http, or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error
    return OTLPSpanExporter()


class RecentTraces:
    """The spans of the last `limit` traces, of each `MAX_SPANS` at most. Safe from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._traces: OrderedDict[int, list[Any]] = OrderedDict()

    def add(self, span: Any) -> None:
        """An ended span of the SDK."""
        trace_id = span.get_span_context().trace_id
        with self._lock:
            held = self._traces.setdefault(trace_id, [])
            if len(held) < MAX_SPANS:
                held.append(span)
            while len(self._traces) > self._limit:
                self._traces.popitem(last=False)

    def ids(self) -> list[str]:
        """The oldest first."""
        with self._lock:
            return [f"{trace_id:032x}" for trace_id in self._traces]

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """Described; none of a trace that is not held."""
        try:
            number = int(trace_id, 16)
        except ValueError:
            return []
        with self._lock:
            held = list(self._traces.get(number, ()))
        return [describe(span) for span in held]

    def processor(self) -> Any:
        from opentelemetry.sdk.trace import SpanProcessor

        recent = self

        class Keep(SpanProcessor):  # type: ignore[misc]
            def on_end(self, span: Any) -> None:
                recent.add(span)

        return Keep()
