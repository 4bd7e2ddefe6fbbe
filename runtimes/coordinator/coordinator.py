"""The coordinator: answers requests with the parts that run here and the nodes above, each by its deadline."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import Manifest, Tier, Variant
from edgekit.devices.battery import Battery, read_battery
from edgekit.devices.device import Device
from edgekit.errors import DeadlineError, EdgekitError, RemoteError, SessionError, UsageError
from edgekit.planning.link import Link
from edgekit.planning.plan import Hop, Objective, PlanLimits
from edgekit.runtimes.codecs.frame import MAX_SEQUENCE, Frame, pack
from edgekit.runtimes.codecs.refinement import encode_refinement
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.breaker import BreakerSettings
from edgekit.runtimes.coordinator.clock import Clock, SystemClock
from edgekit.runtimes.coordinator.execution import Execution
from edgekit.runtimes.coordinator.feeds import check_feeds, checked_deadline_ms, whole_model_specs
from edgekit.runtimes.coordinator.itinerary import Itinerary, Leg, Sent, Timing
from edgekit.runtimes.coordinator.knowledge import Knowledge, Probe
from edgekit.runtimes.coordinator.parts import DeviceParts, HeadResult, Wrap
from edgekit.runtimes.coordinator.policies import Policy, Situation, make_policy
from edgekit.runtimes.coordinator.route import RECHECK_S, Route
from edgekit.runtimes.coordinator.routes import Routes
from edgekit.runtimes.coordinator.tracing import RequestTrace, open_device_recorder, traced
from edgekit.runtimes.peer import Peer, new_request_id
from edgekit.runtimes.protocol.client import ClientOptions
from edgekit.runtimes.session import Feeds
from edgekit.runtimes.tracing.recorder import Recorder

logger = logging.getLogger("edgekit")

# What bounds a request whose caller names no deadline.
DEFAULT_DEADLINE_MS = 30_000.0
THREADS = 32
MAX_IN_FLIGHT = 8
PROBE_TIMEOUT_S = 1.0
BATTERY_S = 10.0
REFINE_STEPS = 2
REFINE_THRESHOLD = 0.7


class Coordinator:
    """Runs `bundle` here and on the nodes `edge` and `cloud`: grpc:// or grpcs:// URLs, or Peers. Safe from any thread.

    `policy`: see `policies`, `auto` follows link and nodes. `deadline_ms` for requests that name none. `token`, `ca`,
    `certificate`: as the nodes ask for. `links`: what to believe of the links before anything was measured. `refine`
    asks at a coarse rate first, and at a finer one where the answer's confidence is below `refine_threshold`. `wrap`
    puts something around the device's sessions (a pace, a counter). `battery` tells its charge to the policy fit.
    `on_reconnect` is called in one of its threads whenever a node has answered a handshake: the moment to flush an
    Outbox. `pool` takes the place of its threads. `trace`: a file for spans (or a recorder that others share and
    close); without it they go where OTEL_EXPORTER_OTLP_ENDPOINT says, and nowhere where it is not set. Closing it ends
    all of them; the bundle is closed with it where it was given by path.

    Raises BundleError, PlanError (nothing to run with this policy), UsageError, UnknownNameError, NodeError (files of
    certificates), SessionError; MissingExtraError and OutputError for `trace`.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        edge: str | Peer | None = None,
        cloud: str | Peer | None = None,
        policy: str | Policy = "auto",
        deadline_ms: float | None = None,
        *,
        token: str = "",
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        objective: Objective = Objective(),
        limits: PlanLimits = PlanLimits(),
        links: Mapping[Hop, Link] | None = None,
        device: Device | None = None,
        servers: Mapping[Tier, Device] | None = None,
        threads: int | None = None,
        key: Path | None = None,
        refine: bool = False,
        refine_threshold: float = REFINE_THRESHOLD,
        wrap: Wrap | None = None,
        timing: Timing = Timing(),
        breaker: BreakerSettings = BreakerSettings(),
        recheck_s: float = RECHECK_S,
        battery: Callable[[], Battery | None] = read_battery,
        probes: bool = True,
        on_reconnect: Callable[[Tier], None] | None = None,
        clock: Clock | None = None,
        pool: Any = None,
        trace: Recorder | Path | str | None = None,
    ) -> None:
        self.deadline_ms = checked_deadline_ms(deadline_ms)
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.timing = timing
        self._objective, self._limits, self._probes = objective, limits, probes
        self._refine, self._refine_threshold = refine, refine_threshold
        self._read_battery, self._battery_read_s = battery, -math.inf
        self._battery: Battery | None = None
        self._knowledge: Knowledge | None = None
        self._is_closed = False
        self._sequence = itertools.count()
        self._on_reconnect = on_reconnect
        self.sender = new_request_id()[:16]
        with ExitStack() as opened:
            self._recorder = open_device_recorder(trace)
            if self._recorder is not None and self._recorder is not trace:
                opened.callback(self._recorder.close)
            self.bundle = bundle if isinstance(bundle, Bundle) else opened.enter_context(Bundle.open(bundle, key))
            self.manifest: Manifest = self.bundle.manifest
            if edge is None and any(part.tier == "edge" for part in self.manifest.parts):
                edge, cloud = cloud, None  # a cloud server holds the edge's parts too, and takes its place
            self.parts = DeviceParts(self.bundle, self.clock, threads=threads, wrap=wrap, on_timed=self._timed)
            opened.callback(self.parts.close)
            self.inputs, self.outputs = whole_model_specs(self.manifest, self.parts)
            self.parts.warm_up(self.inputs)
            self._pool = pool if pool is not None else ThreadPoolExecutor(THREADS, "edgekit-coordinator")
            opened.callback(partial(self._pool.shutdown, wait=True, cancel_futures=True))
            self._routes = Routes(
                self.bundle,
                {"edge": edge, "cloud": cloud},
                self.clock,
                options=ClientOptions(token=token, ca=ca, certificate=certificate),
                breaker=breaker,
                recheck_s=recheck_s,
                on_handshake=self._after_handshake,
            )
            opened.callback(self._routes.close)
            self._variants = frozenset(name for name in self.parts.usable if self._routes.can_go(name))
            measured = {name: times.median_ms for name, times in self.parts.durations.items() if len(times)}
            self._knowledge = Knowledge(
                self.manifest, measured, self._routes.hops, links, device=device, servers=servers
            )
            self.policy.check([way for way in self._knowledge.ways(0.0) if way.variant in self._variants])
            for variant in sorted(self._variants):
                route = self.route(variant)
                if route is not None:
                    route.verdict(variant)  # shakes hands before the first request comes
            self._opened = opened.pop_all()

    # Asking

    def ask(self, feeds: Feeds, deadline_ms: float | None = None) -> Answer:
        """One request, answered by its deadline (`deadline_ms` from now): as planned, or marked degraded.

        Raises InputError for feeds that do not fit; DeadlineError where there is no answer in time; else what kept both
        the plan and a local answer from being carried out, UnreachableError and MismatchError among them.
        """
        started = self.clock.now()
        allowed_ms = checked_deadline_ms(deadline_ms) if deadline_ms is not None else self.deadline_ms
        check_feeds(feeds, self.inputs)
        deadline = started + (allowed_ms if allowed_ms is not None else DEFAULT_DEADLINE_MS) / 1e3
        if self._recorder is None:
            answer = Execution(self, feeds, self.plan(allowed_ms), started, deadline).run()
        else:
            trace = RequestTrace(self._recorder, self.clock, self.manifest, started)
            answer = traced(trace, lambda: self._execution(trace, feeds, allowed_ms, started, deadline).run())
        return replace(answer, silent=self.silent)

    def ask_many(
        self, requests: Iterable[Feeds], *, in_flight: int = 4, deadline_ms: float | None = None
    ) -> Iterator[Answer | EdgekitError]:
        """Answers in order, at most `in_flight` requests under way: one is computed while another is sent.

        A request that fails gives its error in its place. The deadline of each counts from when it is begun. Nothing
        more is taken from `requests` once the iterator is closed.
        """
        if not 1 <= in_flight <= MAX_IN_FLIGHT:
            raise UsageError(f"{in_flight} requests in flight, allowed 1 to {MAX_IN_FLIGHT}")
        waiting: deque[Future[Answer]] = deque()
        try:
            for feeds in requests:
                # The pool's threads know nothing of the span that the caller may have open.
                ask = partial(self.ask, feeds, deadline_ms)
                waiting.append(self.submit(ask if self._recorder is None else partial(copy_context().run, ask)))
                if len(waiting) >= in_flight:
                    yield _outcome(waiting.popleft())
            while waiting:
                yield _outcome(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()

    def plan(self, deadline_ms: float | None = None) -> Itinerary:
        """What the next request will do. Shakes hands and probes links where that is due."""
        if self._is_closed or self._knowledge is None:
            raise SessionError("this coordinator is closed", hint="connect again")
        now = self.clock.now()
        refusals: dict[str, str] = {}
        absent: set[str] = set()
        for variant in self._variants:
            route = self.route(variant)
            verdict = route.verdict(variant) if route is not None else None
            if verdict is not None and verdict.state == "absent":
                absent.add(variant)
            elif verdict is not None and verdict.state == "refused":
                refusals[variant] = verdict.reason
        situation = Situation(
            ways=[way for way in self._knowledge.ways(now) if way.variant in self._variants - absent],
            estimates=self._knowledge.estimates,
            links=self._knowledge.links(),
            refusals=refusals,
            local=self.parts.local,
            limits=self._limits,
            objective=self._objective,
            power=self._knowledge.power,
            now_s=now,
            deadline_ms=deadline_ms,
            battery=self._battery_now(now),
        )
        chosen = self.policy.choose(situation)
        self._probe_where_silent(chosen)
        return self._refined(chosen) if self._refine else chosen

    @property
    def links(self) -> dict[Hop, Link]:
        """What the links are believed to give now."""
        return dict(self._knowledge.links()) if self._knowledge is not None else {}

    @property
    def states(self) -> dict[Tier, str]:
        """Of the breaker of each node: closed, open or half-open."""
        return {route.tier: route.breaker.state for route in self._routes}

    @property
    def silent(self) -> dict[Tier, str]:
        """Nodes that may be asked for nothing now, and why."""
        return self._routes.troubles()

    def refusals(self, wait_s: float = 0.0) -> dict[Tier, RemoteError]:
        """Nodes that answer and may not be asked for anything that the policy could want, and why: AuthenticationError
        or MismatchError. Waits `wait_s` at most for each handshake that is under way."""
        return self._routes.refusals(self._wanted(), wait_s)

    @property
    def differing(self) -> dict[Tier, dict[str, str]]:
        """Of what the policy could want of a node, the variants of which it holds another version, and why."""
        return self._routes.differing(self._wanted())

    def _wanted(self) -> list[str]:
        ways = self._knowledge.ways(self.clock.now()) if self._knowledge is not None else ()
        return [way.variant for way in self.policy.mine([way for way in ways if way.variant in self._variants])]

    def close(self) -> None:
        """Ends its threads and connections; requests under way end with an error. Again is harmless."""
        if not self._is_closed:
            self._is_closed = True
            self._opened.close()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What an execution works with

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        try:
            future: Future[Any] = self._pool.submit(call)
        except RuntimeError as error:
            raise SessionError("this coordinator is closed", hint="connect again") from error
        return future

    def route(self, variant: str) -> Route | None:
        return self._routes.to(variant)

    def encode(self, variant: Variant, head: HeadResult, leg: Leg, sequence: int) -> tuple[bytes, ...]:
        name, rate = variant.codecs[0], leg.rates[0]
        codec, arrays = self.parts.codec(name), self.parts.features(variant, head)
        payload, coarse = self.parts.timed(f"encode:{name}", codec.encode, arrays, rate), None
        if leg.refines is not None and isinstance(codec, TransformCodec):
            more = encode_refinement(codec, arrays, leg.refines, rate)
            if len(more) < len(payload):
                payload, coarse = more, leg.refines
        reader = next(part for part in map(self.manifest.part, variant.parts) if part.tier != "device")
        frame = Frame(
            payload=payload,
            shapes=tuple(array.shape for array in arrays),
            rate=rate,
            plan_digest=self._routes.plan_digests[variant.name],
            codec_digest=self._routes.codec_digests[name],
            model_digest=reader.sha256,
            coarse=coarse,
            sequence=sequence if leg.numbered or coarse is not None else None,
        )
        return (pack(frame),)

    def next_sequence(self) -> int:
        """Numbers frames that may be refined; a node has long let go of a frame when its number comes again."""
        return next(self._sequence) % (MAX_SEQUENCE + 1)

    def plan_digest(self, variant: str) -> str:
        return self._routes.plan_digests[variant]

    def learn(self, sent: Sent) -> None:
        if self._knowledge is not None:
            self._knowledge.exchanged(sent, self.clock.now())

    # Inside

    def _execution(
        self, trace: RequestTrace, feeds: Feeds, allowed_ms: float | None, started: float, deadline: float
    ) -> Execution:
        """With its plan in the trace."""
        asked = self.clock.now()
        plan = self.plan(allowed_ms)
        trace.planned(plan, asked)
        return Execution(self, feeds, plan, started, deadline, trace)

    def _battery_now(self, now: float) -> Battery | None:
        if now - self._battery_read_s >= BATTERY_S:
            self._battery, self._battery_read_s = self._read_battery(), now
        return self._battery

    def _refined(self, plan: Itinerary) -> Itinerary:
        """A coarser leg before the only one."""
        if len(plan.legs) != 1 or not plan.legs[0].rates:
            return plan
        leg = plan.legs[0]
        last = len(self.manifest.codec(self.manifest.variant(leg.variant).codecs[0]).rates) - 1
        coarse = min(leg.rates[0] + REFINE_STEPS, last)
        if coarse == leg.rates[0]:
            return plan
        can_refine = isinstance(self.parts.codec(self.manifest.variant(leg.variant).codecs[0]), TransformCodec)
        first = Leg(leg.variant, (coarse, *leg.rates[1:]), numbered=can_refine)
        second = replace(leg, refines=coarse if can_refine else None)
        return replace(plan, legs=(first, second), threshold=self._refine_threshold)

    def _probe_where_silent(self, plan: Itinerary) -> None:
        used = [self.route(leg.variant) for leg in plan.legs]
        for route in self._routes:
            if route not in used and route.info is not None and route.breaker.state == "closed":
                self._probe_if_silent(route)

    def _after_handshake(self, route: Route) -> None:
        self._probe_if_silent(route)
        if self._on_reconnect is not None:
            with suppress(SessionError):  # closed meanwhile
                self.submit(partial(self._reconnected, route.tier))

    def _reconnected(self, tier: Tier) -> None:
        assert self._on_reconnect is not None
        try:
            self._on_reconnect(tier)
        except Exception:
            logger.warning("on_reconnect failed", exc_info=True)

    def _probe_if_silent(self, route: Route) -> None:
        """One small transfer tells of a link that was not seen for a while before a request has to."""
        if self._knowledge is None or not (self._probes and self.policy.uses_links):
            return
        probe = self._knowledge.due_probe(("device", route.tier), self.clock.now())
        if probe is not None:
            self._probe(route, probe)

    def _probe(self, route: Route, probe: Probe) -> None:
        started = self.clock.now()

        def done(future: Future[None]) -> None:
            if future.cancelled() or self._knowledge is None:
                return
            error, now = future.exception(), self.clock.now()
            if error is None or isinstance(error, DeadlineError):
                took_ms = 1e3 * (now - started)
                self._knowledge.pinged(probe.hop, probe.padding_bytes, took_ms, now, unfinished=error is not None)

        route.peer.ping(PROBE_TIMEOUT_S, probe.padding_bytes).add_done_callback(done)

    def _timed(self, name: str, took_ms: float) -> None:
        if self._knowledge is not None:
            self._knowledge.timed(name, took_ms, self.clock.now())


def _outcome(future: Future[Answer]) -> Answer | EdgekitError:
    try:
        return future.result()
    except EdgekitError as error:
        return error
