"""OpenTelemetry traces: a span for each request, children for what it went through.

W3C's `traceparent` of the caller is the parent, and ours goes to the upstream. Spans go to a file as JSON lines, or by
OTLP where the environment names an endpoint; without either there is no tracer and no cost.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, MissingExtraError, NodeError
from edgekit.runtimes.protocol.status import error_kind

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

Phases = Iterable[tuple[str, int, int]]


class Trace:
    """One request's span, open. `headers` make the upstream's spans its children."""

    def __init__(self, tracer: Any, propagator: Any, headers: Mapping[str, str], model: str, started_ns: int) -> None:
        from opentelemetry import trace

        self._tracer, self._offset_ns = tracer, time.time_ns() - time.perf_counter_ns()
        parent = propagator.extract(dict(headers))
        self._span = tracer.start_span("infer", parent, start_time=started_ns + self._offset_ns)
        self._span.set_attribute("edgekit.model", model)
        self._context = trace.set_span_in_context(self._span, parent)
        self.headers: dict[str, str] = {}
        propagator.inject(self.headers, self._context)

    def finish(self, ended_ns: int, phases: Phases, error: EdgekitError | None) -> None:
        """`phases`: (name, start, end) on `time.perf_counter_ns`'s clock."""
        from opentelemetry.trace import Status, StatusCode

        for name, start, end in phases:
            child = self._tracer.start_span(name, self._context, start_time=start + self._offset_ns)
            child.end(end + self._offset_ns)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, f"{error_kind(error)}: {error.message}"))
        self._span.end(ended_ns + self._offset_ns)


class Tracer:
    """Made by `open_tracer`."""

    def __init__(self, exporter: Any, node: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource({"service.name": node}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("edgekit")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, headers: Mapping[str, str], model: str, started_ns: int) -> Trace:
        return Trace(self._tracer, self._propagator, headers, model, started_ns)

    def close(self) -> None:
        """What is recorded is written first."""
        self._provider.shutdown()


def open_tracer(node: str, file: Path | None) -> Tracer | None:
    """None where neither `file` nor the environment asks for traces. Raises MissingExtraError, NodeError."""
    if file is None and not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("opentelemetry-sdk", "serve", "tracing") from error
    return Tracer(_file_exporter(file) if file is not None else _otlp_exporter(), node)


def _otlp_exporter() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise NodeError(
            "the environment names an OTLP endpoint, and its exporter is not installed",
            hint="pip install opentelemetry-exporter-otlp-proto-http, or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error
    return OTLPSpanExporter()


def _file_exporter(path: Path) -> Any:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    try:
        stream = path.open("a", encoding="utf-8")
    except OSError as error:
        raise NodeError(f"cannot write {path}: {error.strerror}", hint="choose a writable --trace file") from error

    class JsonLines(SpanExporter):  # type: ignore[misc]
        """One object a span: name, ids, start and duration, attributes."""

        _lock = threading.Lock()

        def export(self, spans: Sequence[Any]) -> Any:
            with self._lock:
                for span in spans:
                    stream.write(json.dumps(_describe(span)) + "\n")
                stream.flush()
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            stream.close()

    return JsonLines()


def _describe(span: Any) -> dict[str, Any]:
    context = span.get_span_context()
    return {
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "service": span.resource.attributes.get("service.name"),
        "start_ns": span.start_time,
        "duration_ms": (span.end_time - span.start_time) / 1e6,
        "status": span.status.description or span.status.status_code.name,
        **dict(span.attributes or {}),
    }
