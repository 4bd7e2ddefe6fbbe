"""The way to one node: whether it may be used now, and what is known of the link to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from edgekit.bundle.manifest import Tier
from edgekit.errors import (
    AuthenticationError,
    EdgekitError,
    MismatchError,
    OverloadedError,
    RemoteError,
    UnreachableError,
)
from edgekit.runtimes.coordinator.breaker import BreakerSettings, CircuitBreaker
from edgekit.runtimes.coordinator.clock import Clock
from edgekit.runtimes.peer import NodeInfo, Peer, UpstreamError

HANDSHAKE_S = 2.0
RECHECK_S = 5.0


@dataclass(frozen=True)
class Verdict:
    """`wait`: a handshake is under way and worth waiting for. `refused`: not now, for `reason`. `absent`: the node has
    the same bundle and does not serve this variant, nor has ever promised to."""

    state: Literal["ready", "wait", "refused", "absent"]
    reason: str = ""


class Route:
    """A peer with its breaker and the last handshake. Safe from any thread.

    `plans`: variant -> plan digest, `codecs`: codec -> digest, `bundle_digest`: what this side holds. Nothing is asked
    of a node before a handshake has compared them, and again after each broken connection. A node that differs is
    left alone and compared again every `recheck_s`, as is one that refused the token.
    """

    def __init__(
        self,
        tier: Tier,
        peer: Peer,
        clock: Clock,
        *,
        bundle_digest: str,
        plans: Mapping[str, str],
        codecs: Mapping[str, tuple[str, ...]],
        codec_digests: Mapping[str, str],
        breaker: BreakerSettings = BreakerSettings(),
        handshake_s: float = HANDSHAKE_S,
        recheck_s: float = RECHECK_S,
        on_handshake: Callable[[Route], None] | None = None,
    ) -> None:
        self.tier, self.peer = tier, peer
        self.breaker = CircuitBreaker(clock, breaker)
        self._clock = clock
        self._bundle_digest, self._plans, self._codecs, self._codec_digests = (
            bundle_digest,
            plans,
            codecs,
            codec_digests,
        )
        self._handshake_s, self._recheck_s = handshake_s, recheck_s
        self._on_handshake = on_handshake
        self._lock = threading.Lock()
        self._info: NodeInfo | None = None
        self._pending: Future[NodeInfo] | None = None
        self._waiting: list[Callable[[EdgekitError | None], None]] = []
        self._recheck_at = 0.0
        self._blocked: dict[str, tuple[float, str]] = {}
        self._refusal: AuthenticationError | None = None
        self._last_error = ""

    @property
    def info(self) -> NodeInfo | None:
        """What the node said of itself in the last handshake that counts."""
        with self._lock:
            return self._info

    def verdict(self, variant: str) -> Verdict:
        """Whether `variant` may be asked of this node now. Starts a handshake where one is due."""
        with self._lock:
            info, refusal = self._info, self._refusal
            due = self._clock.now() >= self._recheck_at
            blocked_until, why = self._blocked.get(variant, (0.0, ""))
            if self._clock.now() < blocked_until:
                return Verdict("refused", f"{self.tier}: {why}")
        if refusal is not None:
            if due:
                self._begin_handshake()
            return Verdict("refused", f"{self.tier}: {refusal.message}")
        if info is not None and self._is_absent(info, variant):
            if due:
                self._begin_handshake()
            return Verdict("absent", f"{self.tier}: {info.name} does not serve {variant!r}")
        if info is not None:
            reason = self._difference(info, variant)
            if reason:
                if due:
                    self._begin_handshake()
                return Verdict("refused", f"{self.tier}: {reason}")
            if self.breaker.state == "closed":
                return Verdict("ready")
        # A node that failed is tried by a handshake of its own: no request waits for the outcome of a trial.
        closed = self.breaker.state == "closed"
        self._begin_handshake()
        if closed:
            return Verdict("wait")
        return Verdict("refused", f"{self.tier}: {self._last_error or 'failed'}, left alone for a while")

    def refusal(self, variants: Iterable[str], wait_s: float = 0.0) -> RemoteError | None:
        """Why a node that answers may be asked for none of `variants`: AuthenticationError, or MismatchError where it
        holds other versions of all of them. Waits `wait_s` at most for a handshake that is under way."""
        ended = threading.Event()
        self.when_ready(lambda error: ended.set())
        ended.wait(wait_s)
        with self._lock:
            info, refusal = self._info, self._refusal
        if refusal is not None or info is None:
            return refusal
        reasons = [self._difference(info, variant) for variant in variants if not self._is_absent(info, variant)]
        if not reasons or "" in reasons:
            return None
        return MismatchError(reasons[0], hint="serve and run the same bundle: `edgekit inspect` shows its digest")

    def differing(self, variants: Iterable[str]) -> dict[str, str]:
        """Those of `variants` of which the node holds another version alone, and in what it differs; it may be asked
        for the rest. One that it does not name is no other version: an edge holds none of the cloud's."""
        info = self.info
        if info is None:
            return {}
        named = {variant for entry in (info, *info.others) for variant in entry.plans}
        reasons = {variant: self._difference(info, variant) for variant in variants if variant in named}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def trouble(self) -> str:
        """Why no request may go to the node now, as it said or as its last failure did; "" where one may."""
        with self._lock:
            if self._refusal is not None:
                return self._refusal.message
            if self._info is not None and self.breaker.state == "closed":
                return ""
            return self._last_error

    def when_ready(self, listener: Callable[[EdgekitError | None], None]) -> None:
        """Calls `listener` once the handshake under way has ended and counts, with its error or None."""
        with self._lock:
            if self._pending is not None:
                self._waiting.append(listener)
                return
        listener(None)

    def succeeded(self) -> None:
        self.breaker.success()

    def failed(self, error: EdgekitError, variant: str) -> None:
        """A request for `variant` failed by `error`.

        After a broken connection and after a mismatch whoever answers next has to shake hands again.
        """
        with self._lock:
            self._last_error = error.message
            retry_at = self._clock.now() + self._recheck_s
            if isinstance(error, UpstreamError):
                self._blocked[variant] = retry_at, error.message
                return
            if isinstance(error, OverloadedError):
                return
            if isinstance(error, AuthenticationError):
                self._refusal, self._recheck_at, self._info = error, retry_at, None
                return
            if isinstance(error, UnreachableError | MismatchError):
                self._info = None
        self.breaker.failure()

    def _is_absent(self, info: NodeInfo, variant: str) -> bool:
        """The node has our bundle, and none of what it holds has the variant."""
        held = (info, *info.others)
        ours = any(entry.bundle_digest == self._bundle_digest for entry in held)
        return ours and not any(variant in entry.plans for entry in held)

    def _difference(self, info: NodeInfo, variant: str) -> str:
        """ "" where one of the versions that the node serves is ours; else what differs from the newest."""
        reasons = [self._difference_of(entry, variant) for entry in (info, *info.others)]
        return "" if "" in reasons else reasons[0]

    def _difference_of(self, info: NodeInfo, variant: str) -> str:
        held = info.plans.get(variant, "")
        if held != self._plans[variant]:
            return f"{info.name} holds another bundle: {variant!r} is {held[:12] or 'unknown'} there"
        for codec in self._codecs[variant]:
            digest = info.codecs.get(codec, self._codec_digests[codec])
            if digest != self._codec_digests[codec]:
                return f"{info.name} holds another version of the codec {codec!r} ({digest[:12]})"
        return ""

    def _begin_handshake(self) -> None:
        with self._lock:
            if self._pending is not None or not self.breaker.allow():
                return
            self._recheck_at = self._clock.now() + self._recheck_s
            future = self._pending = self.peer.handshake(self._handshake_s)
        future.add_done_callback(self._end_handshake)

    def _end_handshake(self, future: Future[NodeInfo]) -> None:
        error = _error_of(future)
        if error is None or isinstance(error, AuthenticationError):
            self.breaker.success()  # it answers: what it says is another matter
        else:
            self.breaker.failure()
        with self._lock:
            self._pending, waiting, self._waiting = None, self._waiting, []
            self._info, self._refusal = (future.result(), None) if error is None else (None, self._refusal)
            if error is None:
                self._blocked.clear()
            else:
                self._last_error = error.message
            if isinstance(error, AuthenticationError):
                self._refusal = error
        if error is None and self._on_handshake is not None:
            self._on_handshake(self)
        for listener in waiting:
            listener(error)

    def close(self) -> None:
        self.peer.close()


def _error_of(future: Future[NodeInfo]) -> EdgekitError | None:
    if future.cancelled():
        return EdgekitError("called off")
    error = future.exception()
    if error is None or isinstance(error, EdgekitError):
        return error
    return EdgekitError(f"{type(error).__name__}: {error}")
