"""A request on its way to a node: sent, perhaps again under the same id, and what comes back looked at."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

from edgekit.bundle.manifest import Manifest
from edgekit.errors import (
    AuthenticationError,
    DeadlineError,
    EdgekitError,
    FrameError,
    InputError,
    MismatchError,
    OverloadedError,
    RemoteError,
    UnreachableError,
)
from edgekit.runtimes.coordinator.itinerary import Leg, Sent, Timing
from edgekit.runtimes.coordinator.route import Route
from edgekit.runtimes.peer import Reply, Request, UpstreamError

RETRYABLE = (UnreachableError, FrameError)
# Bytes that changed on the way may look like anything; a second time it is no accident.
ONCE_MORE = (InputError, MismatchError, RemoteError)
FINAL = (UpstreamError, OverloadedError, AuthenticationError, DeadlineError)


@dataclass
class Flight:
    """`attempts` counts handshakes that failed, too."""

    leg: Leg
    route: Route
    request: Request
    sent_at: float = 0.0
    future: Future[Reply] | None = None
    attempts: int = 0

    def send(self, now: float, deadline: float, headers: Mapping[str, str] | None = None) -> Future[Reply]:
        """`headers` of this attempt alone."""
        self.attempts += 1
        self.sent_at = now
        request = self.request if headers is None else replace(self.request, headers=headers)
        self.future = self.route.peer.ask(request, max(1e-3, deadline - now))
        return self.future

    @property
    def is_under_way(self) -> bool:
        return self.future is not None and not self.future.done()

    def may_try_again(self, error: EdgekitError, timing: Timing) -> bool:
        if isinstance(error, FINAL):
            return False
        if isinstance(error, RETRYABLE):
            return self.attempts < timing.max_attempts
        return isinstance(error, ONCE_MORE) and self.attempts < 2

    def pause_s(self, timing: Timing) -> float:
        return timing.retry_pause_s * 2.0 ** (self.attempts - 1)

    def objection(self, reply: Reply, manifest: Manifest) -> EdgekitError | None:
        """Why a reply is no answer to what was asked, None where it is one."""
        url = self.route.peer.url
        if reply.id and reply.id != self.request.id:
            return MismatchError(f"{url} answered another request")
        last = manifest.part(manifest.variant(self.leg.variant).parts[-1])
        for entry in last.outputs:
            array = reply.outputs.get(entry.name)
            reason = "no such output" if array is None else entry.spec().mismatch(array)
            if reason is not None:
                return MismatchError(f"{url}: the output {entry.name!r} has {reason}")
        return None

    def outcome(self, now: float, reply: Reply | None, error: EdgekitError | None = None) -> Sent:
        elapsed_ms = 1e3 * (now - self.sent_at)
        return Sent(self.leg, self.route.tier, self.request.size_bytes, elapsed_ms, reply, error)
