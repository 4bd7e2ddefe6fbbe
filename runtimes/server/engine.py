"""What a node does with a call, whatever protocol brought it: admit, decode, run, and go up where the plan goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from edgekit.bundle.manifest import Postprocess, Tier
from edgekit.errors import (
    EdgekitError,
    InputError,
    NodeError,
    SessionError,
    UnknownNameError,
    UnreachableError,
)
from edgekit.runtimes.protocol.asking import FINAL, FINISH, STEPS, Asking, check_names
from edgekit.runtimes.protocol.calls import InferAnswer, InferCall
from edgekit.runtimes.protocol.frames import Served, Wish, frame_call, frames_of, model_name
from edgekit.runtimes.server.catalog import Catalog
from edgekit.runtimes.server.course import HOPS, MAX_HOPS, PASSED_ON, Course
from edgekit.runtimes.server.gate import read_frames, write_frames
from edgekit.runtimes.server.looped import Looped
from edgekit.runtimes.server.media import TOP_OUTPUT, classifier, items_of, top_labels
from edgekit.runtimes.server.metrics import Metrics
from edgekit.runtimes.server.model import ServedModel
from edgekit.runtimes.server.ongoing import Outcome
from edgekit.runtimes.server.tracing import Tracer
from edgekit.runtimes.server.upstream import Upstream


class Engine:
    """`infer` blocks and may be called from many threads. `deadline_ms`: of requests that bring none."""

    def __init__(
        self,
        catalog: Catalog,
        tier: Tier,
        upstream: Upstream | None,
        metrics: Metrics,
        tracer: Tracer | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        self.catalog, self.tier, self.upstream = catalog, tier, upstream
        self.metrics, self.tracer, self.deadline_ms = metrics, tracer, deadline_ms
        self._idle = threading.Condition()
        self._inside = 0
        self._draining = self._hurried = False
        catalog.on_open = self._watch
        for model in catalog.models:
            self._watch(model)
        metrics.watch_queues(lambda: [(model.name, model) for model in catalog.models])

    def _watch(self, model: ServedModel) -> None:
        model.on_batch = self.metrics.batch_observer(model.name)

    @property
    def is_ready(self) -> bool:
        return not self._draining

    def refused(self, model: str, error: EdgekitError) -> None:
        """A request for `model` that never became a call is counted too."""
        held = any(served.name == model for served in self.catalog.models)
        self.metrics.refused(model if held else "", error)

    def infer(
        self, call: InferCall, *, timeout_s: float | None = None, headers: Mapping[str, str] = {}, tenant: str = ""
    ) -> InferAnswer:
        """Raises UnknownNameError, InputError, CodecError, FrameError, MismatchError, OverloadedError, DeadlineError,
        SessionError, UnreachableError (upstream, or draining)."""
        with self._course(call, timeout_s, headers, tenant) as course:
            return self._infer(course)

    def stream(
        self, call: InferCall, *, timeout_s: float | None = None, headers: Mapping[str, str] = {}, tenant: str = ""
    ) -> Iterator[InferAnswer]:
        """Pieces as they come, where the call asks for them (`edgekit_stream`) and the model is iterated; the last one
        says how it ended. Elsewhere the one answer. Raises like `infer`, also between pieces."""
        with self._course(call, timeout_s, headers, tenant) as course:
            if Asking.of(call.parameters).stream and (model := self._held(course)) is not None:
                try:
                    if model.looped is not None and model.looped.reads(call.tensors):
                        yield from self._pieces(course, model, model.looped)
                        return
                finally:
                    self.catalog.release(model)
            yield self._infer(course)

    @contextmanager
    def _course(
        self, call: InferCall, timeout_s: float | None, headers: Mapping[str, str], tenant: str
    ) -> Iterator[Course]:
        """A request from its admission to its account."""
        with self._admitted(call.model):
            course = self._begin(call, timeout_s, tenant)
            trace = self.tracer.start(headers, call.model, course.started_ns) if self.tracer else None
            passed = {key: headers[key] for key in PASSED_ON if key in headers}
            course.headers = {**passed, **trace.headers} if trace else passed
            error: EdgekitError | None = None
            try:
                yield course
            except Exception as caught:
                error = (
                    caught if isinstance(caught, EdgekitError) else SessionError(f"{type(caught).__name__}: {caught}")
                )
                raise
            finally:
                self._account(course, error)
                if trace is not None:
                    trace.finish(time.perf_counter_ns(), course.phases, error)

    def _begin(self, call: InferCall, timeout_s: float | None, tenant: str) -> Course:
        """Its deadline is the earlier one of the transport's and of the request's own."""
        try:
            check_names(call.parameters)
            wish = Wish.of(call.parameters)
        except EdgekitError as error:
            self.refused(call.model, error)
            raise
        of_call = float("inf") if wish.deadline_ms is None else wish.deadline_ms / 1e3
        of_transport = float("inf") if timeout_s is None else timeout_s
        left_s = min(of_call, of_transport)
        if left_s == float("inf") and self.deadline_ms is not None:
            left_s = self.deadline_ms / 1e3
        return Course(call, wish, time.monotonic() + left_s, tenant=tenant)

    def _held(self, course: Course) -> ServedModel | None:
        """The model, which the caller releases; None where only the upstream may hold it."""
        course.left_s()
        call, wish = course.call, course.wish
        try:
            course.model = self.catalog.acquire(call.model, call.version, bundle=wish.bundle, plan=wish.plan)
        except UnknownNameError:
            if self.upstream is None:
                raise
            return None
        return course.model

    def _infer(self, course: Course) -> InferAnswer:
        model = self._held(course)
        if model is None:
            return self._pass_up(course)
        try:
            return self._run_plan(course, model)
        finally:
            self.catalog.release(model)

    def _run_plan(self, course: Course, model: ServedModel) -> InferAnswer:
        wish, asking = course.wish, Asking.of(course.call.parameters)
        post = self._classifier(model, wish, asking.top) if asking.top else None
        if model.looped is not None and model.looped.reads(course.call.tensors):
            ongoing = model.looped.submit(course.call.tensors, asking, course.deadline, course.tenant)
            return self._answer(course, model, self._ended(course, ongoing.result()))
        tensors = self._run_what_came(model, course)
        if wish.plan:
            variant = model.plans[wish.plan]
            for part in variant.parts[variant.parts.index(model.part.name) + 1 :]:
                following = self.catalog.sibling(model, part)
                if following is None:
                    return self._forward(course, model, part, tensors)
                model = following
                tensors = self._run(model, [model.feeds(tensors)], course)
        if post is not None:
            with course.phase("postprocess"):
                tensors[TOP_OUTPUT] = top_labels(tensors, post, asking.top)
        return self._answer(course, model, tensors)

    def _classifier(self, model: ServedModel, wish: Wish, top: int) -> Postprocess:
        """Asked before anything runs. Raises InputError where the plan's last part gives no labels, or elsewhere."""
        manifest = model.bundle.manifest
        last = model.plans[wish.plan].parts[-1] if wish.plan else model.part.name
        if last != model.part.name and self.catalog.sibling(model, last) is None:
            raise InputError(
                f"{last} is not served here, and labels are made where it is", hint="leave edgekit_top away"
            )
        return classifier(manifest.postprocess, manifest.part(last), top)

    def _pieces(self, course: Course, model: ServedModel, looped: Looped) -> Iterator[InferAnswer]:
        asking = Asking.of(course.call.parameters)
        ongoing = looped.submit(course.call.tensors, asking, course.deadline, course.tenant)
        try:
            for piece in ongoing.pieces():
                wanted = _wanted(piece, course.call.outputs, model.name)
                yield InferAnswer(model.name, model.version, wanted, {FINAL: False}, course.call.id)
            outcome = ongoing.result()
            self._ended(course, outcome)
            course.said[FINAL] = True
            nothing = {name: array[:0] for name, array in outcome.tensors.items()}
            yield self._answer(course, model, nothing)
        finally:
            ongoing.cancel()

    def _ended(self, course: Course, outcome: Outcome) -> dict[str, np.ndarray]:
        """What an iteration came to, noted on its course."""
        end = time.perf_counter_ns()
        start = end - outcome.compute_ns
        course.queue_ns += outcome.queue_ns
        course.phases += [("queue", start - outcome.queue_ns, start), ("compute", start, end)]
        course.cut_short = outcome.degraded
        course.said |= {FINISH: outcome.finish, STEPS: outcome.steps}
        self.metrics.iterated(course.model.name if course.model is not None else "", outcome.finish, outcome.steps)
        if self.tier not in course.tiers:
            course.tiers.append(self.tier)
        return outcome.tensors

    def _run_what_came(self, model: ServedModel, course: Course) -> dict[str, np.ndarray]:
        """Frames, pictures or texts, or ordinary tensors."""
        frames = frames_of(course.call)
        if frames is None:
            items = items_of(course.call.tensors, model.media, model.batching.max_batch) if model.media else None
            if model.media is None or items is None:
                return self._run(model, [course.call.tensors], course)
            with model.expecting(1, course.deadline, course.tenant), course.phase("preprocess"):
                prepared = model.media.samples(items, course.deadline)
            course.left_s()
            return self._run(model, prepared, course)
        with model.expecting(len(frames), course.deadline, course.tenant), course.phase("decode"):
            samples, rate = read_frames(model, frames, course.wish)
        course.rates.append(rate)
        return self._run(model, samples, course)

    def _run(
        self, model: ServedModel, samples: Sequence[Mapping[str, np.ndarray]], course: Course
    ) -> dict[str, np.ndarray]:
        start = time.perf_counter_ns()
        answered = model.run(samples, course.deadline, course.tenant)
        end, queue_ns = time.perf_counter_ns(), answered.queue_ns
        course.queue_ns += queue_ns
        course.phases += [("queue", start, start + queue_ns), ("compute", end - answered.compute_ns, end)]
        if answered.part:
            course.coarser.append(answered.part)
        if self.tier not in course.tiers:
            course.tiers.append(self.tier)
        return answered.outputs

    def _forward(self, course: Course, model: ServedModel, part: str, tensors: Mapping[str, np.ndarray]) -> InferAnswer:
        """The features of `model` through the variant's next codec to `part` on the node upstream."""
        manifest = model.bundle.manifest
        if self.upstream is None:
            raise UnreachableError(
                f"the plan goes on to {part} on the {manifest.part(part).tier}, and this node has no upstream",
                hint="start it with --upstream grpcs://host:port, or run another plan",
            )
        variant = model.plans[course.wish.plan]
        remote = [name for name in variant.parts if manifest.part(name).tier != "device"]
        link = model.codecs[variant.codecs[remote.index(part)]]
        with course.phase("encode"):
            frames = write_frames(model, link, manifest.part(part).sha256, tensors, course.wish)
        wish = replace(course.wish, next_rate=0)
        return self._send_up(course, frame_call(model_name(manifest.name, part), frames, wish, id=course.call.id))

    def _pass_up(self, course: Course) -> InferAnswer:
        """A model that only the upstream may hold: the call as it is."""
        return self._send_up(course, course.call)

    def _send_up(self, course: Course, call: InferCall) -> InferAnswer:
        assert self.upstream is not None
        left_s, hops = course.left_s(), course.hops + 1
        if hops > MAX_HOPS:
            raise UnreachableError(
                f"the request to {call.model} was forwarded {course.hops} times",
                hint="is a node, directly or not, its own --upstream?",
            )
        if left_s is not None:
            wish = replace(Wish.of(call.parameters), deadline_ms=1e3 * left_s)
            call = replace(call, parameters={**call.parameters, **wish.parameters()})
        start = time.perf_counter_ns()
        try:
            answer = self.upstream.infer(call, left_s, {**course.headers, HOPS: str(hops)})
        finally:
            end = time.perf_counter_ns()
            course.phases.append(("forward", start, end))
            self.metrics.forwarded(end - start)
        course.forward_ns = end - start
        course.upstream = Served.of(answer)
        return replace(
            answer,
            id=course.call.id,
            tensors=_wanted(answer.tensors, course.call.outputs, answer.model),
            parameters=self._served(course).parameters(),
        )

    def _answer(self, course: Course, model: ServedModel, tensors: Mapping[str, np.ndarray]) -> InferAnswer:
        return InferAnswer(
            model=model.name,
            version=model.version,
            id=course.call.id,
            tensors=_wanted(tensors, course.call.outputs, model.name),
            parameters={**self._served(course).parameters(), **course.said},
        )

    def _served(self, course: Course) -> Served:
        above = course.upstream
        return Served(
            tiers=(*course.tiers, *above.tiers),
            rates=(*course.rates, *above.rates),
            compute_ms=course.spent_ns("decode", "compute", "encode") / 1e6 + above.compute_ms,
            queue_ms=course.queue_ns / 1e6 + above.queue_ms,
            forward_ms=course.forward_ns / 1e6,
            degraded=bool(course.coarser) or course.cut_short or above.degraded,
            coarser=(*course.coarser, *above.coarser),
        )

    def _account(self, course: Course, error: EdgekitError | None) -> None:
        end = time.perf_counter_ns()
        model = course.model
        if model is not None:
            phases = {"success" if error is None else "fail": end - course.started_ns}
            if error is None:
                phases |= {
                    "queue": course.queue_ns,
                    "compute_input": course.spent_ns("decode"),
                    "compute_infer": course.spent_ns("compute"),
                    "compute_output": course.spent_ns("encode"),
                }
                for stage in {name for name, _, _ in course.phases} & {"preprocess", "postprocess"}:
                    phases[stage] = course.spent_ns(stage)
                    self.metrics.staged(model.name, stage, phases[stage])
            model.statistics.answered(phases)
        self.metrics.request(model.name if model is not None else "", error, end - course.started_ns, course.queue_ns)

    @contextmanager
    def _admitted(self, model: str) -> Iterator[None]:
        with self._idle:
            draining = self._draining
            self._inside += not draining
        if draining:
            error = NodeError("this node is draining", hint="ask another node")
            self.refused(model, error)
            raise error
        try:
            yield
        finally:
            with self._idle:
                self._inside -= 1
                self._idle.notify_all()

    def drain(self, grace_s: float) -> bool:
        """Refuses further calls and waits for those inside. False where some are left after `grace_s`, or when `hurry`
        was called: those of them that have not begun are then refused."""
        with self._idle:
            self._draining = True
            self._idle.wait_for(lambda: self._inside == 0 or self._hurried, grace_s)
            drained = self._inside == 0
        if not drained:
            for model in self.catalog.models:
                model.refuse_waiting()
        return drained

    def hurry(self) -> None:
        with self._idle:
            self._hurried = True
            self._idle.notify_all()

    def close(self) -> None:
        self.catalog.close()
        if self.upstream is not None:
            self.upstream.close()


def _wanted(tensors: Mapping[str, np.ndarray], names: tuple[str, ...], model: str) -> Mapping[str, np.ndarray]:
    if not names:
        return tensors
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise InputError(f"{model} has no outputs {unknown}, allowed {list(tensors)}")
    return {name: tensors[name] for name in names}
