"""When to change the plan: the best one under what the links are believed to give, with hysteresis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgekit.planning.choose import all_rates, exceeded, lean_rates, plans, refusal
from edgekit.planning.costs import MeasuredCosts
from edgekit.planning.estimate import LEAST_PATIENCE_MS, USUAL, LinkEstimate
from edgekit.planning.plan import Hop, Objective, Plan, PlanLimits, Power, RateCost, Way

__all__ = ["Decision", "LinkEstimate", "MeasuredCosts", "Replanner"]

Why = Literal["first", "kept", "better", "deadline", "gone", "down"]

# Computing varies by about this much of itself from one request to the next.
COMPUTE_SPREAD = 0.1


@dataclass(frozen=True)
class Decision:
    """`in_time`: the probability that `plan` answers by the deadline, 1 without one. `why`: first; kept; better by
    the margin long enough; deadline: the plan before would miss it; gone: the plan before is not possible any more;
    down: the plan before needs a link from which nothing comes, and is taken up again when something does.
    `overdue_ms`: an answer that has not come so long after the device handed over its bytes is not to be waited for
    alone; infinite for a plan that stays on the device."""

    plan: Plan
    in_time: float
    why: Why
    overdue_ms: float = math.inf

    @property
    def changed(self) -> bool:
        return self.why != "kept"


@dataclass
class Replanner:
    """Chooses among plans that answer by the deadline with probability `sure` the one of least cost (`prefer`
    "quality": of least drop), or the likeliest where none is sure.

    Another plan takes over once it has been cheaper by `margin` (a share) for `patience` decisions in a row; at once
    where the present one is no longer sure to be in time and another is likelier by `margin`.
    """

    objective: Objective = field(default_factory=Objective)
    limits: PlanLimits = field(default_factory=PlanLimits)
    power: Power | None = None
    margin: float = 0.03
    patience: int = 2
    sure: float = 0.95
    prefer: Literal["cost", "quality"] = "cost"
    _current: tuple[str, tuple[int, ...]] | None = field(default=None, init=False)
    _wins: int = field(default=0, init=False)
    _lean: dict[str, _Lean] = field(default_factory=dict, init=False)

    def decide(
        self,
        ways: Sequence[Way],
        links: Mapping[Hop, LinkEstimate],
        now_s: float,
        deadline_ms: float | None = None,
    ) -> Decision:
        """The plan for the next request. Raises PlanError where no plan meets the limits (the deadline is none)."""
        given = {hop: estimate.link for hop, estimate in links.items()}
        candidates = plans(ways, given, self.power, self._rates)
        allowed = [plan for plan in candidates if not any(exceeded(plan, self.limits))]
        if not allowed:
            raise refusal(plans(ways, given, self.power), self.limits)
        spread = _Spread(ways, links, now_s)
        rated = [(plan, 1.0 if deadline_ms is None else spread.in_time(plan, deadline_ms)) for plan in allowed]
        down = {hop for hop, estimate in links.items() if estimate.is_down(now_s)}
        if down:
            up = [pair for pair in rated if not spread.crosses(pair[0], down)]
            if up and not any((plan.variant, plan.rates) == self._current for plan, _ in up):
                plan, in_time = min(up, key=self._order)
                return Decision(plan, in_time, "down", spread.overdue_ms(plan))
            rated = up or rated
        best, best_in_time = min(rated, key=self._order)
        present = next((pair for pair in rated if (pair[0].variant, pair[0].rates) == self._current), None)
        why: Why
        if self._current is None:
            why = "first"
        elif present is None:
            why = "gone"
        elif present[1] < self.sure and best_in_time > min(present[1] + self.margin, self.sure):
            why = "deadline"
        else:
            self._wins = self._wins + 1 if self._beats(best, present[0]) else 0
            if self._wins < self.patience:
                return Decision(*present, "kept", spread.overdue_ms(present[0]))
            why = "better"
        self._current, self._wins = (best.variant, best.rates), 0
        return Decision(best, best_in_time, why, spread.overdue_ms(best))

    def start_from(self, variant: str, rates: tuple[int, ...]) -> None:
        """As if that had been decided last, by somebody who knows more: another plan takes over as it would then."""
        self._current, self._wins = (variant, rates), 0

    def _rates(self, way: Way) -> Sequence[tuple[int, ...]]:
        """A ladder is thinned once: it stays the same while the costs around it are measured anew."""
        if self.prefer == "quality":
            return all_rates(way)
        ladders = tuple(crossing.rates for crossing in way.crossings)
        known = self._lean.get(way.variant)
        if known is None or known.drop != way.drop + way.exit_drop or known.ladders != ladders:
            known = _Lean(ladders, way.drop + way.exit_drop, lean_rates(way, self.limits.drop))
            self._lean[way.variant] = known
        return known.rates

    def _order(self, rated: tuple[Plan, float]) -> tuple[float, ...]:
        plan, in_time = rated
        cost = (self.objective.cost(plan), plan.drop)
        first = cost if self.prefer == "cost" else cost[::-1]
        # Beyond `sure`, likelier is no better; below, a percent more or less decides nothing.
        return (-min(round(in_time, 2), self.sure), *first, plan.bytes_sent)

    def _beats(self, best: Plan, present: Plan) -> bool:
        if (best.variant, best.rates) == (present.variant, present.rates):
            return False
        if self.prefer == "quality" and best.drop < present.drop:
            return True
        return self.objective.cost(best) < (1 - self.margin) * self.objective.cost(present)


@dataclass(frozen=True)
class _Lean:
    """The rates worth weighing of a way with these ladders and this drop of its own."""

    ladders: tuple[tuple[RateCost, ...], ...]
    drop: float
    rates: list[tuple[int, ...]]


class _Spread:
    """How far latencies may be off, by plan."""

    def __init__(self, ways: Sequence[Way], links: Mapping[Hop, LinkEstimate], now_s: float) -> None:
        self._ways = {way.variant: way for way in ways}
        self._links, self._now_s = links, now_s
        self._known: dict[tuple[Hop, float], float] = {}

    def in_time(self, plan: Plan, deadline_ms: float) -> float:
        """Of a request that goes all the way up: an exit on the device does not help the ones that pass it."""
        local_ms, remote_ms, variance = self._figures(plan)
        if variance <= 0:
            return float(local_ms + remote_ms <= deadline_ms)
        return 0.5 * (1 + math.erf((deadline_ms - local_ms - remote_ms) / math.sqrt(2 * variance)))

    def overdue_ms(self, plan: Plan) -> float:
        if not plan.rates:
            return math.inf
        _, remote_ms, variance = self._figures(plan)
        return remote_ms + max(LEAST_PATIENCE_MS, USUAL * math.sqrt(variance))

    def _figures(self, plan: Plan) -> tuple[float, float, float]:
        """(ms on the device, ms from there to the answer, variance of both) of a request that goes all the way up."""
        way = self._ways[plan.variant]
        share = 1 - way.local_share
        local_ms = way.exit_ms + sum(stage.latency_ms for stage in way.stages if stage.tier == "device")
        local_ms += sum(crossing.encode_ms for crossing in way.crossings if crossing.hop[0] == "device")
        remote_ms = (plan.latency_ms - local_ms) / share if share > 0 else 0.0
        variance = (COMPUTE_SPREAD * plan.compute_ms) ** 2
        for crossing, index in zip(way.crossings, plan.rates, strict=True):
            size_bytes = crossing.rates[index].size_bytes + way.answer_bytes
            variance += sum(self._transfer(hop, size_bytes) ** 2 for hop in self._hops(crossing.hop))
        return local_ms, remote_ms, variance

    def crosses(self, plan: Plan, hops: set[Hop]) -> bool:
        return any(not hops.isdisjoint(self._hops(crossing.hop)) for crossing in self._ways[plan.variant].crossings)

    def _hops(self, hop: Hop) -> tuple[Hop, ...]:
        return (hop,) if hop in self._links else (("device", "edge"), ("edge", "cloud"))

    def _transfer(self, hop: Hop, size_bytes: float) -> float:
        key = (hop, size_bytes)
        if key not in self._known:
            self._known[key] = self._links[hop].spread_ms(size_bytes, self._now_s)
        return self._known[key]
