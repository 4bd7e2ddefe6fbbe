"""The device's share of a trace: one span for a request, and below it all that it went through.

    ask                 the whole question, with what came of it as attributes
    ├── plan            choosing the way
    ├── queue           for a thread of the device's pool
    ├── head, exit      the device's own part, and the exit behind it
    ├── encode          features into a frame
    ├── connect         waiting for a handshake
    ├── pause           between two attempts
    ├── send            one attempt; the node's spans hang below it
    └── local           the device alone: planned, or beside or after a node that did not answer

What was begun and no longer needed ends with the answer, `edgekit.outcome` being `let go`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import Manifest
from edgekit.errors import EdgekitError
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.clock import Clock
from edgekit.runtimes.coordinator.flight import Flight
from edgekit.runtimes.coordinator.itinerary import Itinerary, Leg
from edgekit.runtimes.peer import Reply
from edgekit.runtimes.tracing.recorder import OpenSpan, Recorder, error_text, offset_ns, open_recorder

SERVICE = "edgekit-device"

Phase = tuple[str, float, float]


def open_device_recorder(trace: Recorder | Path | str | None) -> Recorder | None:
    """One that is given, one of its own for a file, or what the environment asks for. Raises like `open_recorder`."""
    if isinstance(trace, Recorder):
        return trace
    return open_recorder(SERVICE, Path(trace) if trace is not None else None)


class RequestTrace:
    """Of one request; times in the coordinator's clock's seconds. Used by the thread that asked alone."""

    def __init__(self, recorder: Recorder, clock: Clock, manifest: Manifest, started: float) -> None:
        self._manifest = manifest
        self._offset_ns = offset_ns(lambda: round(1e9 * clock.now()))
        self._now = clock.now
        self._span = recorder.open("ask", self._ns(started), model=manifest.name)
        self._open: dict[str, OpenSpan] = {}
        self._failed_at: float | None = None
        self._posted_at = started

    @property
    def trace_id(self) -> str:
        return self._span.trace_id

    def planned(self, plan: Itinerary, started: float) -> None:
        names = "; ".join(leg.variant for leg in plan.legs)
        self._add("plan", started, self._now(), policy=plan.policy or None, variants=names, note=plan.note or None)

    def posted(self) -> None:
        """The device's share of a leg waits for a thread."""
        self._posted_at = self._now()

    def prepared(self, leg: Leg, phases: Sequence[Phase], size_bytes: int | None) -> None:
        """What the device did for `leg`; `size_bytes` of the frame, None where an exit's answer stands."""
        if phases:
            self._add("queue", self._posted_at, phases[0][1])
        for name, start, end in phases:
            if name == "encode":
                self._add(name, start, end, rate=leg.rates[0], refines=leg.refines, bytes=size_bytes)
            else:
                self._add(name, start, end, variant=leg.variant)

    def connecting(self, flight: Flight) -> None:
        now = self._now()
        self._end_pause(now)
        self._open["connect"] = self._span.open("connect", self._ns(now), node=flight.route.tier)

    def connected(self, error: EdgekitError | None) -> None:
        self._end("connect", self._now(), error)
        self._failed_at = self._now() if error is not None else None

    def sent(self, flight: Flight) -> dict[str, str]:
        """The headers that go along with the attempt which is about to be made."""
        now, leg = self._now(), flight.leg
        self._end_pause(now)
        send = self._open["send"] = self._span.open(
            "send",
            self._ns(now),
            "client",
            node=flight.route.tier,
            url=flight.route.peer.url,
            variant=leg.variant,
            rates=list(leg.rates),
            attempt=flight.attempts + 1,
            refines=leg.refines,
            bytes_sent=flight.request.size_bytes,
        )
        return send.headers()

    def replied(self, at: float, reply: Reply | None, error: EdgekitError | None) -> None:
        """`reply` is no answer where there is an `error`."""
        if error is not None or reply is None:
            self._failed_at = at
            self._end("send", at, error)
            return
        self._end(
            "send",
            at,
            None,
            bytes_received=reply.size_bytes,
            node_compute_ms=reply.compute_ms,
            node_queue_ms=reply.queue_ms,
            answered_by=reply.tier or None,
        )

    def local_begun(self, variant: str, planned: bool) -> None:
        """`planned` is False for a hedge and for a fallback: the first has a node beside it that may still answer."""
        why = "planned" if planned else "hedge" if self._open else "fallback"
        self._open["local"] = self._span.open("local", self._ns(self._now()), variant=variant, why=why)

    def local_ended(self, at: float, error: EdgekitError | None) -> None:
        self._end("local", at, error)

    def finish(self, answer: Answer | None, error: EdgekitError | None) -> None:
        now = self._now()
        for span in self._open.values():
            span.end(self._ns(now), outcome="let go")
        if answer is None:
            self._span.end(self._ns(now), error_text(error) if error is not None else "")
            return
        self._span.end(
            self._ns(now),
            variant=answer.variant,
            rates=list(answer.rates),
            policy=answer.policy or None,
            tier=answer.tier,
            degraded=answer.degraded,
            reason=answer.reason or None,
            exited=answer.exited or None,
            attempts=answer.attempts,
            bytes_sent=answer.bytes_sent,
            bytes_received=answer.bytes_received,
            confidence=answer.confidence,
            request_id=answer.request_id,
        )

    def _end_pause(self, now: float) -> None:
        if self._failed_at is not None:
            self._add("pause", self._failed_at, now)
            self._failed_at = None

    def _add(self, name: str, start: float, end: float, **attributes: Any) -> None:
        self._span.add(name, self._ns(start), self._ns(end), **attributes)

    def _end(self, name: str, at: float, error: EdgekitError | None, **attributes: Any) -> None:
        span = self._open.pop(name, None)
        if span is not None:
            span.end(self._ns(at), error_text(error) if error is not None else "", **attributes)

    def _ns(self, seconds: float) -> int:
        return round(1e9 * seconds) + self._offset_ns


def traced(trace: RequestTrace, run: Callable[[], Answer]) -> Answer:
    """The answer of `run`, and `trace` ended with it or with its error."""
    try:
        answer = run()
    except BaseException as error:
        trace.finish(None, error if isinstance(error, EdgekitError) else None)
        raise
    trace.finish(answer, None)
    return answer
