"""Recording spans with the OpenTelemetry SDK, for a device as for a node. Imports it only when a recorder is opened.

Spans go to a file as JSON lines, or by OTLP where the environment names an endpoint. The SDK's own settings hold for
both: OTEL_TRACES_SAMPLER thins them out, and a caller whose traceparent says `not sampled` is not recorded.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, MissingExtraError
from edgekit.runtimes.tracing.sinks import RecentTraces, file_exporter, otlp_exporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

# Spans that may wait for the file, and how long: a reader of the file sees a request after so long at most.
_QUEUE, _DELAY_MS = 1 << 14, 500


def offset_ns(now_ns: Callable[[], int]) -> int:
    """What is to be added to a reading of `now_ns` to have nanoseconds since 1970.

    The two clocks are read one after the other: of three pairs the one that took least time counts.
    """
    pairs = []
    for _ in range(3):
        before = now_ns()
        wall = time.time_ns()
        after = now_ns()
        pairs.append((after - before, wall - (before + after) // 2))
    return min(pairs)[1]


class OpenSpan:
    """A span that has begun; times in nanoseconds since 1970. Its own thread alone may use it."""

    def __init__(self, recorder: Recorder, span: Any, context: Any) -> None:
        self._recorder, self._span, self._context = recorder, span, context

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; "" where the sampler leaves this one out."""
        context = self._span.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""

    def headers(self) -> dict[str, str]:
        """W3C's `traceparent`: whoever gets it goes on below this span."""
        return self._recorder.headers(self._context)

    def reserve_child(self) -> tuple[int, dict[str, str]]:
        """The id of a child that will be added later, and the headers that name it as the parent; this span's own, and
        0, where nothing is recorded."""
        if not self._span.is_recording():
            return 0, self.headers()
        return self._recorder.reserve(self._span.get_span_context())

    def open(self, name: str, start_ns: int, kind: str = "internal", **attributes: Any) -> OpenSpan:
        """A child. `attributes` are named edgekit.*, None is left out."""
        return self._recorder.open(name, start_ns, kind, self._context, **attributes)

    def add(
        self, name: str, start_ns: int, end_ns: int, kind: str = "internal", span_id: int = 0, **attributes: Any
    ) -> None:
        """A child that is over; `span_id` as reserved."""
        with self._recorder.using_id(span_id):
            child = self._recorder.open(name, start_ns, kind, self._context, **attributes)
        child.end(end_ns)

    def end(self, end_ns: int, error: str = "", **attributes: Any) -> None:
        """`error`: what went wrong, as `kind: message`."""
        for key, value in attributes.items():
            if value is not None:
                self._span.set_attribute(f"edgekit.{key}", value)
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(end_ns)

    @contextmanager
    def as_current(self) -> Iterator[None]:
        """What is opened inside without a parent becomes its child."""
        from opentelemetry import trace

        with trace.use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield


class Recorder:
    """Made by `open_recorder`. Safe from any thread."""

    def __init__(self, service: str, exporter: Any, recent: RecentTraces | None = None, **batching: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        from edgekit.runtimes.tracing.ids import ReservedIds

        self._ids = ReservedIds()
        resource = Resource({"service.name": service, "service.instance.id": uuid.uuid4().hex[:16]})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        self.recent = recent
        if recent is not None:
            self._provider.add_span_processor(recent.processor())
        self._provider.add_span_processor(BatchSpanProcessor(exporter, **batching))
        self._tracer = self._provider.get_tracer("edgekit")
        self._propagator = TraceContextTextMapPropagator()

    def open(self, name: str, start_ns: int, kind: str = "internal", parent: Any = None, **attributes: Any) -> OpenSpan:
        """`parent`: a context, the current one without: below a span of the caller's own, where there is one."""
        from opentelemetry import trace

        named = {f"edgekit.{key}": value for key, value in attributes.items() if value is not None}
        span = self._tracer.start_span(
            name, parent, kind=trace.SpanKind[kind.upper()], attributes=named, start_time=start_ns
        )
        return OpenSpan(self, span, trace.set_span_in_context(span, parent))

    @contextmanager
    def request(self, name: str, model: str) -> Iterator[OpenSpan]:
        """A span around the block, which is current inside and ends with its error, if it raises one."""
        span = self.open(name, time.time_ns(), model=model)
        try:
            with span.as_current():
                yield span
        except BaseException as error:
            span.end(time.time_ns(), error_text(error))
            raise
        span.end(time.time_ns())

    def parent(self, headers: Mapping[str, str]) -> Any:
        """The context that a caller's `traceparent` names; an empty one, so a new trace, without."""
        from opentelemetry.context import Context

        return self._propagator.extract(dict(headers), Context())

    def headers(self, context: Any) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return carrier

    def reserve(self, above: Any) -> tuple[int, dict[str, str]]:
        """An id for a span below the SpanContext `above` that is not open yet, and its headers."""
        from opentelemetry import trace

        span_id = self._ids.generate_span_id()
        later = trace.SpanContext(above.trace_id, span_id, False, above.trace_flags, above.trace_state)
        return span_id, self.headers(trace.set_span_in_context(trace.NonRecordingSpan(later)))

    def using_id(self, span_id: int) -> Any:
        return self._ids.using(span_id)

    def close(self) -> None:
        """What is recorded is written first. Again is harmless."""
        self._provider.shutdown()


def error_text(error: BaseException) -> str:
    """What a span says of it."""
    return f"{type(error).__name__}: {error.message if isinstance(error, EdgekitError) else error}".rstrip(": ")


def open_recorder(service: str, file: Path | None, *, keep: int = 0) -> Recorder | None:
    """None where neither `file` nor the environment asks for traces. `service`: see Span. `keep`: how many traces stay
    in memory, for `Recorder.recent`.

    Raises MissingExtraError, OutputError (the file), UsageError (an endpoint without its exporter)."""
    if file is None and not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("opentelemetry-sdk", "trace", "tracing") from error
    recent = RecentTraces(keep) if keep else None
    if file is None:
        return Recorder(service, otlp_exporter(), recent)
    batching = {"max_queue_size": _QUEUE, "schedule_delay_millis": _DELAY_MS}
    return Recorder(service, file_exporter(file), recent, **batching)
