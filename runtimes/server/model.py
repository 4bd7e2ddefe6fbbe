"""A part of a bundle, served: its session, its queue, and the codecs through which features come in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Codec as CodecEntry
from edgekit.bundle.manifest import Manifest, Part, Variant
from edgekit.errors import EdgekitError, InputError, MismatchError, MissingExtraError
from edgekit.runtimes.codecs.base import Codec, open_codec
from edgekit.runtimes.codecs.rows import CodedRows
from edgekit.runtimes.load import load
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.server.batching import Arrays, Batcher, Finished
from edgekit.runtimes.server.decoding import DecodePool
from edgekit.runtimes.server.iteration import IterationOptions
from edgekit.runtimes.server.looped import Looped
from edgekit.runtimes.server.media import TEXT, Media, open_media
from edgekit.runtimes.server.padding import Padding, find_padding
from edgekit.runtimes.server.refinement import CoarseFrames
from edgekit.runtimes.server.schedule import BatchOptions, Tenant
from edgekit.runtimes.server.statistics import Statistics
from edgekit.runtimes.session import Session
from edgekit.tensors import DTYPES, shares_batch

logger = logging.getLogger("edgekit")

OpenSession = Callable[[Bundle, Part, "int | None"], Session]

WORTHWHILE = 0.9  # of the time of the level before: a coarser way to answer that takes more is none
WARM_S = 2.0  # a largest batch that would take longer is not run to warm up


def open_native(bundle: Bundle, part: Part, threads: int | None) -> Session:
    """In the runtime of the part's own format."""
    return load(bundle, part=part.name, threads=threads)


@dataclass(frozen=True)
class Serving:
    """How models are served. `threads`: of each session. `degrade`: where a model would be too late, a coarser one of
    the same bundle answers, marked. `open_session`: (bundle, part, threads) -> its session. `decoding`: where pictures
    are decoded."""

    threads: int | None = None
    batch: BatchOptions = BatchOptions()
    tenants: tuple[Tenant, ...] = ()
    degrade: bool = False
    open_session: OpenSession = open_native
    iteration: IterationOptions = IterationOptions()
    decoding: DecodePool = field(default_factory=DecodePool)


@dataclass(frozen=True)
class Link:
    """A codec of the bundle, open: `digest` is what both ends compare."""

    entry: CodecEntry
    digest: str
    codec: Codec


@dataclass(frozen=True)
class Answered:
    """`queue_ns` in the queue, `compute_ns` in the model; `part`: the coarser one that answered instead, else ""."""

    outputs: dict[str, np.ndarray]
    queue_ns: int
    compute_ns: int
    part: str = ""


class ServedModel:
    """`version` counts the bundles of one name. Close it to free its sessions; the bundle is the caller's."""

    def __init__(self, bundle: Bundle, part: Part, version: str, serving: Serving = Serving()) -> None:
        """Raises like `load`, and CodecError for tables that do not fit."""
        self.bundle, self.part, self.version = bundle, part, version
        self.name = model_name(bundle.manifest.name, part.name)
        self.inputs = tuple(entry.spec() for entry in part.inputs)
        self.outputs = tuple(entry.spec() for entry in part.outputs)
        self.statistics = Statistics()
        self.coarse = CoarseFrames()
        self.on_batch: Callable[[Finished], None] | None = None
        self.batching = serving.batch
        self._sessions: list[Session] = []
        self.looped: Looped | None = None
        try:
            self.media = _media(bundle, part, serving.decoding)
            self.codecs = _codecs(bundle, part)
            self.links = {link.digest: link for name, link in self.codecs.items() if name in _inbound(bundle, part)}
            self.levels = (part, *(coarser_parts(bundle.manifest, part) if serving.degrade else ()))
            workers = [self._open_worker(serving) for _ in range(serving.batch.workers)]
            self.read_inside = self._readers()
            paces = [[self._warm_up(session) for session in levels] for levels in workers]
            kept = _worthwhile([sum(runs.values()) for runs in paces[0]])
            self.looped = self._open_loop(serving)
            self.levels = tuple(self.levels[level] for level in kept)
            self._batcher = Batcher(
                self.name,
                [[levels[level].run for level in kept] for levels in workers],
                self.is_batchable,
                serving.batch,
                self._observe,
                serving.tenants,
                self._padding([workers[0][level] for level in kept]),
            )
        except BaseException:
            if self.looped is not None:
                self.looped.close()
            for session in self._sessions:
                session.close()
            raise
        for worker in paces:
            for number, level in enumerate(kept):
                for rows, seconds in worker[level].items():
                    self._batcher.learn(number, rows, seconds)

    def _open_worker(self, serving: Serving) -> list[Session]:
        """A session for each level."""
        opened = [serving.open_session(self.bundle, part, serving.threads) for part in self.levels]
        self._sessions += opened
        return opened

    def _readers(self) -> frozenset[str]:
        """Digests of the codecs whose frames every session decodes itself, in a batch."""
        found = set(self.links)
        for session in self._sessions:
            found &= {digest for digest, link in self.links.items() if session.reads(digest, link.codec)}
        return frozenset(found)

    def _padding(self, levels: Sequence[Session]) -> Padding | None:
        """None where one of the levels minds."""
        if not self.is_batchable:
            return None
        found = [find_padding(session.run, self.inputs, self.outputs) for session in levels]
        return found[0] if all(found) else None

    def _open_loop(self, serving: Serving) -> Looped | None:
        if self.part.loop is None:
            return None
        session = serving.open_session(self.bundle, self.part, serving.threads)
        self._sessions.append(session)
        return Looped(
            self.name,
            self.part.loop,
            session.run,
            self.inputs,
            self.outputs,
            serving.iteration,
            serving.tenants,
            lambda rows, start, end, failed: self._observe(Finished(rows, rows, start, end, failed)),
        )

    def _warm_up(self, session: Session) -> dict[int, float]:
        """Rows -> seconds of one row and of a full batch, so that the first caller pays for no start and its deadline
        can be told. Empty where shapes are left open beside the batch."""
        sizes = (1, self.batching.max_batch) if self.is_batchable else (1,)
        shapes = {spec: spec.shape[1:] if self.is_batchable else spec.shape for spec in self.inputs}
        if any(isinstance(size, str) for shape in shapes.values() for size in shape):
            return {}
        taken: dict[int, float] = {}
        for rows in sizes:
            if taken and taken[1] * rows > WARM_S:
                break
            first = (rows,) if self.is_batchable else ()
            feeds = {spec.name: np.zeros((*first, *shape), DTYPES[spec.dtype]) for spec, shape in shapes.items()}
            try:
                session.run(feeds)
                start = time.perf_counter()
                session.run(feeds)
            except EdgekitError as error:
                logger.warning("%s is not warm: %d rows of zeros fail: %s", self.name, rows, error.message)
                break
            taken[rows] = time.perf_counter() - start
        return taken

    @property
    def runs(self) -> str:
        """What really runs, where that is not the part's file in its own runtime; else ""."""
        return self._sessions[0].runs

    @property
    def backend(self) -> str:
        """The part's format, or that of the session that stands in for its own runtime."""
        return self._sessions[0].format if self.runs else self.part.format

    @cached_property
    def is_batchable(self) -> bool:
        return shares_batch(spec.shape for spec in (*self.inputs, *self.outputs))

    @cached_property
    def alternatives(self) -> dict[str, tuple[int, ...]]:
        """BYTES tensors that may stand for the inputs, and their shapes; -1 is open."""
        media = {self.media.name: (-1,)} if self.media is not None else {}
        return {**media, **({TEXT: (1,)} if self.looped is not None and self.looped.takes_text else {})}

    @property
    def depth(self) -> int:
        return self._batcher.depth + (self.looped.depth if self.looped is not None else 0)

    @property
    def is_idle(self) -> bool:
        return self._batcher.is_idle and (self.looped is None or self.looped.is_idle)

    @cached_property
    def plans(self) -> dict[str, Variant]:
        """Plan digest -> the variant, of those that this part is in."""
        manifest = self.bundle.manifest
        return {
            manifest.plan_digest(variant.name): variant
            for variant in manifest.variants
            if self.part.name in variant.parts
        }

    def link_of(self, plan: str) -> Link:
        """The codec through which `plan` (a whole digest) brings this part its features. Raises MismatchError."""
        variant = self.plans.get(plan)
        codec = _codec_of(self.bundle, variant, self.part) if variant is not None else None
        found = [link for link in self.links.values() if link.entry.name == codec]
        if not found:
            raise MismatchError(
                f"{self.name} is not reached by a codec in the plan {plan[:16]}", hint="give both ends the same bundle"
            )
        return found[0]

    def _observe(self, batch: Finished) -> None:
        self.statistics.ran(batch)
        if self.on_batch is not None:
            self.on_batch(batch)

    def check(self, tensors: Arrays) -> None:
        """Raises InputError for names, dtypes, shapes or a batch that this model does not take."""
        names = [spec.name for spec in self.inputs]
        if set(tensors) != set(names):
            raise InputError(f"{self.name}: input names {sorted(tensors)}, allowed {sorted(names)}")
        for spec in self.inputs:
            reason = spec.mismatch(tensors[spec.name])
            if reason is not None:
                raise InputError(f"{self.name}: input {spec.name!r} has {reason}")
        if self.is_batchable:
            rows = {len(array) for array in tensors.values()}
            if len(rows) != 1 or not 1 <= min(rows) <= self.batching.max_batch:
                raise InputError(
                    f"{self.name}: a batch of {sorted(rows)}, allowed 1 to {self.batching.max_batch}, the same for all"
                )

    def expecting(self, count: int, deadline: float, tenant: str = "") -> AbstractContextManager[None]:
        """While so many samples are decoded. Raises QueueFullError or LateError where they would be refused."""
        return self._batcher.expecting(count, deadline, tenant)

    def run(self, samples: Sequence[Arrays], deadline: float, tenant: str = "") -> Answered:
        """Each sample checked and run, answers joined along the first axis.

        `deadline` on `time.monotonic`'s clock. Raises InputError, and like `Batcher.infer`.
        """
        for sample in samples:
            if not isinstance(sample, CodedRows):
                self.check(sample)
        ran = self._batcher.infer(samples, deadline, tenant)
        outputs = (
            dict(ran[0].outputs)
            if len(ran) == 1
            else {spec.name: np.concatenate([entry.outputs[spec.name] for entry in ran]) for spec in self.outputs}
        )
        # Samples of one request that ran in one batch took its time once.
        compute = {entry.started_ns: entry.compute_ns for entry in ran}
        level = max(entry.level for entry in ran)
        return Answered(
            outputs,
            max(entry.queue_ns for entry in ran),
            sum(compute.values()),
            self.levels[level].name if level else "",
        )

    def feeds(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What another part or a codec calls its tensors, under this part's names: by name, else in order."""
        names = [spec.name for spec in self.inputs]
        if set(features) == set(names):
            return dict(features)
        if len(features) != len(names):
            raise InputError(f"{self.name}: {len(features)} features, allowed {len(names)}: {', '.join(names)}")
        return dict(zip(names, features.values(), strict=True))

    def refuse_waiting(self) -> None:
        """Nobody has time for them any more."""
        self._batcher.refuse_waiting()
        if self.looped is not None:
            self.looped.refuse_waiting()

    def close(self) -> None:
        """What waits is finished first."""
        self._batcher.close()
        if self.looped is not None:
            self.looped.close()
        for session in self._sessions:
            session.close()


def coarser_parts(manifest: Manifest, part: Part) -> list[Part]:
    """Parts that answer alone, on the same tier, with the same inputs and outputs as `part`, and lose more points; the
    best first."""
    drops = {variant.parts[0]: variant.drop for variant in reversed(manifest.variants) if len(variant.parts) == 1}
    shape = (part.tier, part.inputs, part.outputs)
    fitting = [one for one in manifest.parts if one.name in drops and (one.tier, one.inputs, one.outputs) == shape]
    own = drops.get(part.name, 0.0)
    return sorted((one for one in fitting if drops[one.name] > own), key=lambda one: drops[one.name])


def _worthwhile(seconds: Sequence[float]) -> list[int]:
    """The levels that are faster than the one kept before them."""
    kept = [0]
    for level, taken in enumerate(seconds[1:], 1):
        if 0 < taken < WORTHWHILE * seconds[kept[-1]]:
            kept.append(level)
    return kept


def _media(bundle: Bundle, part: Part, pool: DecodePool) -> Media | None:
    """Without the package that reads texts, ordinary tensors are served all the same."""
    try:
        return open_media(bundle, part, pool)
    except MissingExtraError as error:
        logger.warning("%s of %s takes no text: %s", part.name, bundle.path, error.message)
        return None


def _codec_of(bundle: Bundle, variant: Variant, part: Part) -> str | None:
    """The name of the codec before `part` in `variant`; None on the device."""
    remote = [name for name in variant.parts if bundle.manifest.part(name).tier != "device"]
    return variant.codecs[remote.index(part.name)] if part.name in remote else None


def _inbound(bundle: Bundle, part: Part) -> set[str]:
    """Names of the codecs that carry what goes into `part`, in any variant."""
    return {name for variant in bundle.manifest.variants if (name := _codec_of(bundle, variant, part)) is not None}


def _codecs(bundle: Bundle, part: Part) -> dict[str, Link]:
    """Every codec of the variants that `part` is in, by name: what comes in, and what goes on from it."""
    names = {
        name for variant in bundle.manifest.variants if part.name in variant.parts for name in variant.codecs
    } | _inbound(bundle, part)
    return {name: open_link(bundle, name) for name in sorted(names)}


def open_link(bundle: Bundle, name: str) -> Link:
    """The codec of that name of a bundle. Raises UnknownNameError for its kind, CodecError for its tables."""
    entry = bundle.manifest.codec(name)
    tables = bundle.asset_path(entry.tables).read_bytes() if entry.tables else None
    return Link(entry, bundle.manifest.codec_digest(name), open_codec(entry, tables))
