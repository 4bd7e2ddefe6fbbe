"""One request from question to answer: a small state machine, driven by the thread that asked.

Whatever takes time runs elsewhere (the device's parts in the pool, the network in gRPC) and posts to one mailbox. The
asking thread alone changes state, so that an answer is given exactly once; it wakes for an event, for the last moment
at which a local answer can be started, or for the deadline, and never sleeps past it.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, cast

from edgekit.bundle.manifest import Tier, Variant
from edgekit.errors import DeadlineError, EdgekitError, MismatchError, RemoteError, SessionError, UnreachableError
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.depth import LocalResult
from edgekit.runtimes.coordinator.errands import Errands, check_open, error_of
from edgekit.runtimes.coordinator.flight import Flight
from edgekit.runtimes.coordinator.itinerary import Itinerary
from edgekit.runtimes.coordinator.ledger import Ledger
from edgekit.runtimes.coordinator.means import Means
from edgekit.runtimes.coordinator.preparation import Preparation, Prepared
from edgekit.runtimes.coordinator.route import Route
from edgekit.runtimes.coordinator.tracing import RequestTrace
from edgekit.runtimes.peer import Reply, new_request_id
from edgekit.runtimes.session import Feeds


class Execution:
    """`run` ends by `deadline` (in the clock's seconds): with an answer, or by raising what kept it from one."""

    def __init__(
        self,
        means: Means,
        feeds: Feeds,
        plan: Itinerary,
        started: float,
        deadline: float,
        trace: RequestTrace | None = None,
    ) -> None:
        self._trace = trace
        self._means, self._feeds, self._plan = means, feeds, plan
        self._started, self._deadline = started, deadline
        self._clock = means.clock
        self._mailbox = means.clock.mailbox()
        self._id = new_request_id()
        self._legs, self._leg = list(plan.legs), 0
        self._preparation = Preparation(means, feeds, self._id)
        self._errands = Errands(means, self._mailbox)
        self._flight: Flight | None = None
        self._retry_at: float | None = None
        self._local: str = ""  # "", running, failed
        self._local_planned = False
        self._error: EdgekitError | None = None
        self._spare: Answer | None = None
        self._answer: Answer | None = None
        self._ledger = Ledger(
            self._clock,
            started,
            self._id,
            plan.policy,
            [plan.reason] if plan.reason else [],
            choice=plan.note,
            trace_id=trace.trace_id if trace is not None else "",
            deadline=deadline,
        )
        margin_s = means.timing.margin_s(deadline - started, means.parts.lateness.worst_ms)
        self._latest_hedge = deadline - means.parts.local_p95_ms() / 1e3 - margin_s
        self._has_local = means.parts.local is not None
        self._hedge_at = self._latest_hedge if self._has_local else float("inf")

    def run(self) -> Answer:
        """Raises DeadlineError, or the error that kept both the plan and a local answer from being carried out."""
        try:
            self._start_leg()
            while self._answer is None:
                wake_at = self._wake_at()
                event = self._mailbox.get(wake_at)
                if event is not None:
                    event()
                else:
                    self._means.parts.lateness.add(1e3 * max(0.0, self._clock.now() - wake_at))
                if self._answer is None:
                    self._look_at_the_clock()
            return self._answer
        finally:
            self._let_go()

    # Legs

    @property
    def _variant(self) -> Variant:
        return self._means.manifest.variant(self._legs[self._leg].variant)

    def _start_leg(self) -> None:
        leg = self._legs[self._leg]
        variant = self._variant
        if not variant.codecs:
            self._start_local(planned=True)
            return
        route = self._means.route(variant.name)
        if route is None:
            self._give_up(f"no node for variant {variant.name!r}", None)
            return
        verdict = route.verdict(variant.name)
        if verdict.state in ("refused", "absent"):
            self._give_up(verdict.reason, None)
            return
        number = self._leg
        if self._trace is not None:
            self._trace.posted()
        self._errands.post(
            lambda: self._preparation.prepare(variant, leg, number), partial(self._on_request, number, route)
        )

    def _on_request(self, leg: int, route: Route, future: Future[Any], at: float) -> None:
        check_open(future)
        if leg != self._leg:
            return
        error = error_of(future)
        if error is not None:
            self._give_up(f"the device's own part failed: {error.message}", error)
            return
        prepared: Prepared = future.result()
        head, request = prepared.head, prepared.request
        self._ledger.note_phases(prepared.phases)
        if self._trace is not None:
            self._trace.prepared(self._legs[leg], prepared.phases, request.size_bytes if request is not None else None)
        variant = self._variant
        if head.exit_outputs is not None:
            # An exit's answer that stands is what was planned; one that does not is what a failure falls back to.
            stands = request is None
            answer = self._ledger.answer(
                head.exit_outputs, "device", variant.name, exited=True, confidence=head.sure, degraded=not stands
            )
            if stands:
                self._answer = answer
                return
            self._spare = self._spare or answer
        assert request is not None
        self._flight = Flight(self._legs[leg], route, request)
        self._send()

    # The node

    def _send(self) -> None:
        flight = self._flight
        assert flight is not None
        verdict = flight.route.verdict(flight.leg.variant)
        if verdict.state in ("refused", "absent"):
            self._give_up(verdict.reason, None)
            return
        if verdict.state == "wait":
            waiting = self._clock.now()
            if self._trace is not None:
                self._trace.connecting(flight)
            flight.route.when_ready(
                lambda error: self._mailbox.put(partial(self._on_handshake, flight, waiting, error))
            )
            return
        self._ledger.attempts += 1
        self._ledger.bytes_sent += flight.request.size_bytes
        headers = self._trace.sent(flight) if self._trace is not None else None
        future = flight.send(self._clock.now(), self._deadline, headers)
        if self._has_local and self._local == "":
            self._hedge_at = min(self._latest_hedge, flight.sent_at + self._plan.overdue_ms / 1e3)
        future.add_done_callback(
            lambda done: self._mailbox.put(partial(self._on_reply, flight, done, self._clock.now()))
        )

    def _on_handshake(self, flight: Flight, since: float, error: EdgekitError | None) -> None:
        if flight is not self._flight:
            return
        self._ledger.note(connect=1e3 * (self._clock.now() - since))
        if self._trace is not None:
            self._trace.connected(error)
        if error is not None:
            flight.attempts += 1
            self._retry_or_give_up(flight, error)
        else:
            self._send()

    def _on_reply(self, flight: Flight, future: Future[Any], at: float) -> None:
        if flight is not self._flight or future.cancelled():
            return
        elapsed_ms = 1e3 * (at - flight.sent_at)
        error = error_of(future)
        reply: Reply | None = None
        if error is None:
            reply = future.result()
            error = flight.objection(reply, self._means.manifest)
        if self._trace is not None:
            self._trace.replied(at, reply, error)
        if error is not None or reply is None:
            assert error is not None
            if isinstance(error, MismatchError) and flight.leg.refines is not None:
                # The node has let go of what this refines: the whole frame instead, and nobody is to blame.
                self._flight = None
                self._legs[self._leg] = replace(flight.leg, refines=None)
                self._start_leg()
                return
            self._means.learn(flight.outcome(at, None, error))
            flight.route.failed(error, flight.leg.variant)
            self._retry_or_give_up(flight, error)
            return
        flight.route.succeeded()
        self._means.learn(flight.outcome(at, reply))
        network_ms = max(0.0, elapsed_ms - reply.compute_ms - reply.queue_ms)
        self._ledger.note(network=network_ms, queue=reply.queue_ms, compute=reply.compute_ms)
        self._ledger.bytes_received += reply.size_bytes
        self._take(flight, reply)

    def _take(self, flight: Flight, reply: Reply) -> None:
        """An answer from above: the end, or not confident enough and the next leg is asked."""
        variant = self._means.manifest.variant(flight.leg.variant)
        outputs = {
            entry.name: reply.outputs[entry.name] for entry in self._means.manifest.part(variant.parts[-1]).outputs
        }
        exit, sure = variant.exit, None
        threshold = self._plan.threshold if self._plan.threshold is not None or exit is None else exit.threshold
        if threshold is not None:
            sure = float(self._means.parts.confidence_of(outputs, exit.temperature if exit is not None else 1.0).min())
        tier = cast(Tier, reply.tier or flight.route.tier)
        answer = self._ledger.answer(
            outputs,
            tier,
            variant.name,
            rates=flight.leg.rates,
            confidence=sure,
            degraded=bool(self._ledger.faults) or reply.degraded,
            reason=reply.reason,
        )
        confident = sure is None or threshold is None or sure >= threshold
        self._flight = None
        if confident or self._leg + 1 == len(self._legs):
            self._answer = answer
            return
        self._spare = answer
        self._leg += 1
        self._start_leg()

    def _retry_or_give_up(self, flight: Flight, error: EdgekitError) -> None:
        """The same request, under the same id, while there is time for it and a local answer after it."""
        again_at = self._clock.now() + flight.pause_s(self._means.timing)
        last_moment = self._latest_hedge if self._has_local else self._deadline
        if flight.may_try_again(error, self._means.timing) and again_at < last_moment:
            self._retry_at = again_at
        else:
            self._give_up(f"{flight.route.tier}: {error.message}", error)

    def _give_up(self, reason: str, error: EdgekitError | None) -> None:
        """This leg leads nowhere: the next one, what there is already, or the device alone."""
        self._flight = None
        self._ledger.faults.append(reason)
        self._error = self._error or error
        if self._leg + 1 < len(self._legs):
            self._leg += 1
            self._start_leg()
        elif self._spare is not None and not self._spare.exited:
            self._answer = self._ledger.degraded(self._spare)
        elif self._local == "running":
            return
        elif self._means.parts.local is not None and self._local != "failed":
            self._start_local(planned=False)
        elif self._spare is not None:
            self._answer = self._ledger.degraded(self._spare)
        else:
            raise self._failure()

    # The device alone

    def _start_local(self, *, planned: bool) -> None:
        name = self._variant.name if planned else self._means.parts.local
        assert name is not None
        variant = self._means.manifest.variant(name)
        self._local, self._local_planned = "running", planned
        self._hedge_at = float("inf")
        since = self._clock.now()
        if self._trace is not None:
            self._trace.local_begun(name, planned)
        self._errands.post(
            lambda: self._means.parts.run_local(variant, self._feeds), partial(self._on_local, variant.name, since)
        )

    def _on_local(self, name: str, since: float, future: Future[Any], at: float) -> None:
        check_open(future)
        error = error_of(future)
        if self._trace is not None:
            self._trace.local_ended(at, error)
        if error is None:
            self._means.parts.local_runs.add(1e3 * (self._clock.now() - since))
            self._ledger.note(local=1e3 * (at - since))
            degraded = self._plan.degraded or not self._local_planned
            result: LocalResult = future.result()
            self._answer = self._ledger.answer(
                result.outputs,
                "device",
                name,
                degraded=degraded,
                reason="; ".join(self._ledger.asides),
                exited=result.exited,
                confidence=result.sure,
                left=result.left,
            )
            return
        self._local = "failed"
        self._error = self._error or error
        self._ledger.asides.append(f"the local run failed: {error.message}")
        if self._flight is not None or self._waits_for_request():
            return  # the node may still answer
        if self._spare is not None:
            self._answer = self._ledger.degraded(self._spare)
            return
        raise self._failure()

    def _waits_for_request(self) -> bool:
        return not self._local_planned and self._errands.are_under_way

    # Time

    def _wake_at(self) -> float:
        return min(self._deadline, self._hedge_at, self._retry_at if self._retry_at is not None else float("inf"))

    def _look_at_the_clock(self) -> None:
        now = self._clock.now()
        if now >= self._deadline:
            self._out_of_time()
        elif now >= self._hedge_at:
            self._hedge_at = float("inf")
            if self._local == "" and (self._spare is None or self._spare.exited):
                so_far = f"{self._flight.route.tier} had not answered" if self._flight else "nothing was sent yet"
                why = "the deadline was near" if now >= self._latest_hedge else "it took longer than the link explains"
                self._ledger.asides.append(f"{why} and {so_far}")
                self._start_local(planned=False)
        elif self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            if self._flight is not None:
                self._send()

    def _out_of_time(self) -> None:
        if self._spare is not None:
            self._ledger.faults.append("the deadline passed before a better answer came")
            self._answer = self._ledger.degraded(self._spare)
            return
        raise self._failure(out_of_time=True)

    def _failure(self, *, out_of_time: bool = False) -> EdgekitError:
        why = self._ledger.reasons
        if out_of_time:
            waited = "the local run had not ended" if self._local == "running" else "nothing had answered"
            allowed_ms = 1e3 * (self._deadline - self._started)
            message = f"no answer within {allowed_ms:.0f} ms: {waited}" + (f" ({why})" if why else "")
            return DeadlineError(message, hint="allow more time, or a smaller local variant")
        hint = "" if self._means.parts.local is not None else "this bundle has no variant that runs on the device alone"
        kind: type[EdgekitError] = type(self._error) if self._error is not None else UnreachableError
        kind = kind if issubclass(kind, RemoteError) else SessionError
        return kind(why or "nothing could answer", hint=hint)

    def _let_go(self) -> None:
        """Calls off what waits to be done here. A request that is on its way goes on to its deadline: nobody is given
        what comes of it, but when it comes tells of the link."""
        flight, self._flight = self._flight, None
        self._errands.call_off()
        if flight is None or flight.future is None or not flight.is_under_way:
            return
        now = self._clock.now()
        overdue = DeadlineError(f"no answer within {1e3 * (now - flight.sent_at):.0f} ms")
        flight.route.failed(overdue, flight.leg.variant)
        self._means.learn(flight.outcome(now, None, overdue))
        flight.future.add_done_callback(partial(self._on_late_reply, flight))

    def _on_late_reply(self, flight: Flight, future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        reply: Reply = future.result()
        if flight.objection(reply, self._means.manifest) is None:
            flight.route.succeeded()
            self._means.learn(flight.outcome(self._clock.now(), reply))
