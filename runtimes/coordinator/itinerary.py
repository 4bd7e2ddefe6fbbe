"""What a policy decides, what a request keeps to, and what is learnt from it: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.bundle.manifest import Tier
from edgekit.errors import DeadlineError, EdgekitError
from edgekit.runtimes.peer import Reply


@dataclass(frozen=True)
class Leg:
    """One way to an answer: a variant, and a rate for each of its crossings.

    `numbered`: its frame may be refined by a later leg. `refines`: the rate of a frame sent before, which this leg's
    refines where that is shorter than the whole one.
    """

    variant: str
    rates: tuple[int, ...] = ()
    numbered: bool = False
    refines: int | None = None


@dataclass(frozen=True)
class Itinerary:
    """Legs in order: the next one is taken while the answer so far is not confident enough. `degraded` from the start
    where what the policy wanted cannot be had, for `reason`. `threshold`: the confidence that an answer from above
    needs; without it that of the variant's exit. `overdue_ms` after it was sent, a request is no longer waited for
    alone: the local answer is started beside it. `note`: why this variant, where another loses less."""

    legs: tuple[Leg, ...]
    policy: str = ""
    degraded: bool = False
    reason: str = ""
    threshold: float | None = None
    overdue_ms: float = float("inf")
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """When the local answer is started at the latest moment, the time before the deadline that is kept free beyond
    what such a run takes: `margin_ms`, or `margin_share` of the deadline where that is more; and as much again at most
    where this machine was late of late. A request is sent at most
    `max_attempts` times, after pauses of `retry_pause_s`, twice as long each time."""

    margin_ms: float = 10.0
    margin_share: float = 0.1
    max_attempts: int = 4
    retry_pause_s: float = 0.03

    def margin_s(self, allowed_s: float, late_ms: float) -> float:
        """`late_ms`: the worst that a thread was lately woken too late."""
        margin = max(self.margin_ms / 1e3, self.margin_share * allowed_s)
        return margin + min(margin, late_ms / 1e3)


@dataclass(frozen=True)
class Sent:
    """What the coordinator learns from one exchange. `reply` None: nothing came within `elapsed_ms`, or `error`."""

    leg: Leg
    tier: Tier
    bytes_sent: int
    elapsed_ms: float
    reply: Reply | None
    error: EdgekitError | None = None

    @property
    def is_overdue(self) -> bool:
        """The node, as far as is known, still works on it."""
        return isinstance(self.error, DeadlineError)
