"""What the device itself does: its parts of the bundle as sessions, early exits, and coding what goes up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import Exit, Manifest, Part, Variant
from edgekit.errors import BundleError, EdgekitError, MissingExtraError, SessionError
from edgekit.runtimes.codecs.base import Codec, open_codec
from edgekit.runtimes.coordinator.clock import Clock
from edgekit.runtimes.coordinator.confidence import confidence
from edgekit.runtimes.coordinator.depth import Ladder, LocalResult
from edgekit.runtimes.coordinator.durations import Durations
from edgekit.runtimes.load import load
from edgekit.runtimes.session import Feeds, Session
from edgekit.tensors import DTYPES, TensorSpec

logger = logging.getLogger("edgekit")

Arrays = dict[str, np.ndarray]
Wrap = Callable[[str, Session], Session]
Phase = tuple[str, float, float]


@dataclass(frozen=True)
class HeadResult:
    """`values`: everything that may go up, by name; `last`: what the last part of the device gave (the feeds where none
    runs there). `exit_outputs` and `sure`, the least confidence in the batch, where the variant has an exit. `phases`:
    (stage, start, end) in the clock's seconds."""

    values: Arrays
    last: Arrays = field(default_factory=dict)
    exit_outputs: Arrays | None = None
    sure: float | None = None
    phases: tuple[Phase, ...] = ()


# A variant that took less than this in all is run up to so many times before the first request.
QUICK_MS, QUICK_RUNS = 60.0, 15


class DeviceParts:
    """The device's sessions and codecs. Sessions are one at a time each; everything else is safe from any thread.

    A variant whose part has no runtime here, or whose codec cannot be opened, is left out: `missing` says why.
    """

    def __init__(
        self,
        bundle: Bundle,
        clock: Clock,
        *,
        threads: int | None = None,
        wrap: Wrap | None = None,
        on_timed: Callable[[str, float], None] | None = None,
    ) -> None:
        """`wrap` may put something around a part's session; `on_timed` hears how many ms each part and codec took."""
        self.manifest: Manifest = bundle.manifest
        self._on_timed = on_timed
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._codecs: dict[str, Codec] = {}
        self.durations: dict[str, Durations] = {}
        # A local answer until the thread that asked has it, and how late that thread is woken.
        self.local_runs, self.lateness = Durations(), Durations()
        self.missing: dict[str, str] = {}
        self._ladders = {
            variant.name: Ladder(self.manifest, variant, self.run_part)
            for variant in self.manifest.variants
            if variant.exits
        }
        self.local: str | None = None
        try:
            for variant in self.manifest.variants:
                self._take(bundle, variant, threads, wrap)
        except BaseException:
            self.close()
            raise

    def _take(self, bundle: Bundle, variant: Variant, threads: int | None, wrap: Wrap | None) -> None:
        default = self.manifest.variants[0]
        if self._outputs(variant) != self._outputs(default):
            self.missing[variant.name] = f"its outputs are not those of {default.name!r}: it cannot stand in for it"
            return
        names = [name for name in variant.parts if self.manifest.part(name).tier == "device"]
        is_local = len(names) == len(variant.parts)
        names += [exit.part for exit in _exits(variant)]
        try:
            for name in names:
                if name not in self._sessions:
                    session = load(bundle, part=name, threads=threads)
                    self._sessions[name] = wrap(name, session) if wrap is not None else session
                    self._locks[name] = threading.Lock()
                    self.durations[name] = Durations()
            # Codecs beyond the first run on nodes; only what leaves the device is coded here.
            for codec in variant.codecs[:1]:
                if codec not in self._codecs:
                    entry = self.manifest.codec(codec)
                    tables = bundle.asset_path(entry.tables).read_bytes() if entry.tables is not None else None
                    self._codecs[codec] = open_codec(entry, tables)
                    self.durations[f"encode:{codec}"] = Durations()
        except (MissingExtraError, SessionError) as error:
            self.missing[variant.name] = error.message
            logger.warning("variant %s cannot run here: %s", variant.name, error.message)
            return
        if is_local and self.local is None:
            self.local = variant.name

    def _outputs(self, variant: Variant) -> list[tuple[str, str, int]]:
        return [(entry.name, entry.dtype, len(entry.shape)) for entry in self.manifest.part(variant.parts[-1]).outputs]

    @property
    def usable(self) -> tuple[str, ...]:
        """The variants that can run here (what lies above is another matter), in the manifest's order."""
        return tuple(variant.name for variant in self.manifest.variants if self.can_run(variant.name))

    def can_run(self, variant: str) -> bool:
        if variant in self.missing:
            return False
        entry = self.manifest.variant(variant)
        device = [name for name in entry.parts if self.manifest.part(name).tier == "device"]
        device += [exit.part for exit in _exits(entry)]
        return all(name in self._sessions for name in device) and all(c in self._codecs for c in entry.codecs[:1])

    def codec(self, name: str) -> Codec:
        return self._codecs[name]

    def warm_up(self, inputs: Sequence[TensorSpec], runs: int = 3) -> None:
        """Times every part and codec on noise, so that the first deadline is kept by what was measured, not guessed.

        In turns, so that a slow moment meets all variants; quick ones more often than `runs`, until their median says
        which of them is the quicker. Where sizes are open they are 1; a part that takes no such size is timed by the
        first request.
        """
        rng = np.random.default_rng(0)
        feeds: Arrays = {}
        for spec in inputs:
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            dtype = DTYPES[spec.dtype]
            noise = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            feeds[spec.name] = np.asarray(noise, dtype)
        waiting = list(self.usable)
        for _ in range(max(runs, QUICK_RUNS)):
            for name in list(waiting):
                timed = [self.durations[one] for one in self._timed_names(self.manifest.variant(name))]
                spent_ms = sum(len(one) * one.median_ms for one in timed)
                enough = runs if spent_ms > QUICK_MS else max(runs, QUICK_RUNS)
                if all(len(one) >= enough for one in timed) or not self._warm_once(name, inputs, feeds):
                    waiting.remove(name)

    def _warm_once(self, name: str, inputs: Sequence[TensorSpec], feeds: Arrays) -> bool:
        """False where a part does not take the sizes of `feeds`, which are guessed."""
        variant = self.manifest.variant(name)
        try:
            head = self.run_head(variant, feeds)
            for exit in variant.exits:
                self.run_part(self.manifest.part(exit.part), head.values, {})
        except SessionError:
            if all(spec.is_static for spec in inputs):
                raise
            return False
        for codec_name in variant.codecs[:1]:
            codec = self.codec(codec_name)
            self.timed(f"encode:{codec_name}", codec.encode, self.features(variant, head), codec.rates // 2)
        return True

    def _timed_names(self, variant: Variant) -> list[str]:
        exit_part = [exit.part for exit in _exits(variant)]
        own = [name for name in variant.parts if self.manifest.part(name).tier == "device"]
        return [*own, *exit_part, *(f"encode:{codec}" for codec in variant.codecs[:1])]

    def local_p95_ms(self) -> float:
        """Of a local answer from the moment that it is asked for, 0 without a local variant."""
        if self.local is None:
            return 0.0
        alone = sum(self.durations[name].p95_ms for name in self.manifest.variant(self.local).parts)
        return max(alone, self.local_runs.p95_ms)

    def run_head(self, variant: Variant, feeds: Feeds, threshold: float | None = None) -> HeadResult:
        """The device's parts of `variant` and its exit, if any, which ends it where its confidence is `threshold` or
        more. Raises SessionError or InputError."""
        phases: list[Phase] = []
        values: Arrays = dict(feeds)
        last: Arrays = {}
        entries = [self.manifest.part(name) for name in variant.parts]
        for position, part in enumerate(entry for entry in entries if entry.tier == "device"):
            started = self._clock.now()
            last = self.run_part(part, values, last)
            values = {**values, **last}
            phases.append(("head", started, self._clock.now()))
            if position == 0 and variant.exit is not None:
                started = self._clock.now()
                exit_outputs = self.run_part(self.manifest.part(variant.exit.part), values, last)
                phases.append(("exit", started, self._clock.now()))
                sure = float(self.confidence_of(exit_outputs, variant.exit.temperature).min())
                if threshold is not None and sure >= threshold:
                    return HeadResult(values, last, exit_outputs, sure, tuple(phases))
        if variant.exit is None:
            return HeadResult(values, last or values, phases=tuple(phases))
        return HeadResult(values, last, exit_outputs, sure, tuple(phases))

    def run_local(self, variant: Variant, feeds: Feeds) -> LocalResult:
        """All of a variant whose parts are all on the device: the outputs of its last part, or of an exit before it."""
        if variant.exits:
            return self._ladders[variant.name].run(feeds)
        values: Arrays = dict(feeds)
        last: Arrays = {}
        for name in variant.parts:
            last = self.run_part(self.manifest.part(name), values, last)
            values = {**values, **last}
        return LocalResult(last)

    def run_part(self, part: Part, values: Arrays, last: Arrays) -> Arrays:
        """Inputs are found by name, or by position where the part below calls its outputs otherwise."""
        names = [entry.name for entry in part.inputs]
        if all(name in values for name in names):
            feeds = {name: values[name] for name in names}
        elif len(last) == len(names):
            feeds = dict(zip(names, last.values(), strict=True))
        else:
            raise BundleError(f"part {part.name!r} reads {names}, there are {sorted(values)}", hint="export again")
        started = self._clock.now()
        with self._locks[part.name]:
            outputs = self._sessions[part.name].run(feeds)
        # Waiting for the lock counts: whoever asks wants to know when the answer will be there.
        self._timed(part.name, started)
        return outputs

    def features(self, variant: Variant, head: HeadResult) -> list[np.ndarray]:
        """The arrays that the variant's first codec takes, by name, or in order where the head calls them otherwise."""
        entry = self.manifest.codec(variant.codecs[0])
        names = [feature.name for feature in entry.features]
        if all(name in head.values for name in names):
            return [head.values[name] for name in names]
        if len(head.last) == len(names):
            return list(head.last.values())
        raise BundleError(
            f"codec {entry.name!r} takes {names}, the head gives {sorted(head.last)}", hint="export again"
        )

    def timed(self, name: str, call: Callable[..., bytes], *arguments: object) -> bytes:
        started = self._clock.now()
        result = call(*arguments)
        self._timed(name, started)
        return result

    def _timed(self, name: str, started: float) -> None:
        took_ms = 1e3 * (self._clock.now() - started)
        self.durations[name].add(took_ms)
        if self._on_timed is not None:
            self._on_timed(name, took_ms)

    def confidence_of(self, outputs: Mapping[str, np.ndarray], temperature: float) -> np.ndarray:
        """One number a sample, of the outputs that hold the classes' scores."""
        post = self.manifest.postprocess
        name = post.output if post is not None and post.output in outputs else next(iter(outputs))
        return np.atleast_1d(confidence(outputs[name], temperature))

    def close(self) -> None:
        """Closes every session once what runs in it has ended."""
        problems: list[EdgekitError] = []
        for name, session in self._sessions.items():
            with self._locks[name]:
                try:
                    session.close()
                except EdgekitError as error:
                    problems.append(error)
        if problems:
            raise problems[0]


def _exits(variant: Variant) -> tuple[Exit, ...]:
    return variant.exits if variant.exit is None else (variant.exit,)
