"""What a coordinator asks of a node, whatever carries it: a handshake, a ping, and an answer to each request."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgekit.errors import UnreachableError


def new_request_id() -> str:
    """32 hexadecimal digits, never given twice."""
    return uuid.uuid4().hex


class UpstreamError(UnreachableError):
    """The node itself says that it cannot: the node above it is gone, or it is about to stop. The way to it is fine."""


@dataclass(frozen=True)
class NodeInfo:
    """What a node holds. `plans`: variant -> plan digest, `codecs`: codec -> codec digest, of those that it serves.

    `others`: the same of each further bundle of that name, where it serves several; the node itself is the newest.
    """

    name: str
    bundle_digest: str
    plans: Mapping[str, str] = field(default_factory=dict)
    codecs: Mapping[str, str] = field(default_factory=dict)
    others: tuple[NodeInfo, ...] = ()


@dataclass(frozen=True)
class Request:
    """One question to a node: `variant` from `part` on, its input either coded `frames` (one or more, each of some
    samples, in order) or raw `feeds`.

    `rates`: one index for each crossing of the variant; the node uses those beyond its own. `plan_digest` is what the
    node's own must equal. `id` stays the same when a request is sent again. `headers` go along as the
    call's metadata: a traceparent.
    """

    variant: str
    part: str
    plan_digest: str
    frames: tuple[bytes, ...] = ()
    feeds: Mapping[str, np.ndarray] | None = None
    rates: tuple[int, ...] = ()
    sender: str = ""
    id: str = field(default_factory=new_request_id)
    headers: Mapping[str, str] | None = None

    @property
    def size_bytes(self) -> int:
        """Of what is carried, without the envelope."""
        return sum(map(len, self.frames)) + sum(array.nbytes for array in (self.feeds or {}).values())


@dataclass(frozen=True)
class Reply:
    """`compute_ms` and `queue_ms` as the nodes measured them, summed; `tier` gave the answer. `forward_ms` from the
    first node's sending it up to the answer of the node above; 0 where it did not.

    `size_bytes` of the answer and `sent_bytes` of the request as messages, envelope included.
    """

    outputs: dict[str, np.ndarray]
    id: str
    tier: str
    compute_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0
    size_bytes: int = 0
    sent_bytes: int = 0
    degraded: bool = False
    reason: str = ""


class Peer(Protocol):
    """A way to one node. Every call has a deadline in seconds; none of them blocks, none of them retries.

    The futures raise UnreachableError, AuthenticationError, OverloadedError, MismatchError, DeadlineError, FrameError
    (the frame was damaged on the way) or RemoteError. To cancel one lets go of the call.
    """

    url: str

    def handshake(self, deadline_s: float) -> Future[NodeInfo]:
        """What the node holds, of what it may be asked."""

    def ping(self, deadline_s: float, padding_bytes: int = 0) -> Future[None]:
        """There and back, with `padding_bytes` on the way there: how long it takes tells of the link alone."""

    def ask(self, request: Request, deadline_s: float) -> Future[Reply]:
        """The node knows the deadline and gives up by itself."""

    def close(self) -> None:
        """Ends what is under way with UnreachableError; again is harmless."""
