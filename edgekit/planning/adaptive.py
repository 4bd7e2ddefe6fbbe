"""edgekit's own policy in a simulation: the replanner and the link estimate that a coordinator uses, and no more."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link
from edgekit.planning.plan import Hop, Links, Way
from edgekit.planning.replan import Replanner
from edgekit.planning.simulate import Seen
from edgekit.planning.world import Choice, World

FIRST_GUESS = Link(10.0, 20.0)
BELOW: Hop = ("device", "edge")


class Adaptive:
    """Knows the links between servers (`above`); learns the traced one from exchanges and from pings of its own."""

    name = "edgekit"

    def __init__(
        self,
        ways: Sequence[Way],
        replanner: Replanner,
        deadline_ms: float,
        above: Links | None = None,
        first: Link = FIRST_GUESS,
    ) -> None:
        self._ways = {way.variant: way for way in ways}
        self._replanner, self._deadline_ms, self._above = replanner, deadline_ms, above or {}
        self.estimate = LinkEstimate(first)
        self._reaches_up = any(way.crossings for way in ways)

    def choose(self, now_s: float, world: World) -> Choice:
        links = {BELOW: self.estimate} | {hop: _known(link, now_s) for hop, link in self._above.items()}
        decision = self._replanner.decide(tuple(self._ways.values()), links, now_s, self._deadline_ms)
        return Choice(self._ways[decision.plan.variant], decision.plan.rates, decision.overdue_ms)

    def observe(self, seen: Seen) -> None:
        size_bytes = seen.up_bytes + seen.down_bytes
        self.estimate.observe(size_bytes, max(0.0, seen.network_ms), seen.at_s, unfinished=not seen.replied)

    def probe_bytes(self, now_s: float, choice: Choice) -> int:
        """Where the request itself tells nothing of a link that was not seen for a while."""
        if choice.way.crossings or not self._reaches_up or not self.estimate.wants_probe(now_s):
            return 0
        self.estimate.probing(now_s)
        return self.estimate.probe_bytes


def _known(link: Link, now_s: float) -> LinkEstimate:
    """A link that holds still: as sure of it as an estimate can be."""
    estimate = LinkEstimate(link)
    for _ in range(4):
        estimate.observe(1000.0, link.rtt_ms + link.transfer_ms(1000.0), now_s)
    return estimate
