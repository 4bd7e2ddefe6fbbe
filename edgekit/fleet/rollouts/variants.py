"""Which variant of a bundle a device should run, by its own link and its own speed: pure functions over numbers.

A plan is rated by the mean of its latency over the usual link and over the slow quartile of it. Another one takes over
where it is faster by `MARGIN` on both: a link that swings between the two does not make the plan swing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.planning.choose import exceeded, lean_rates, plans, refusal
from edgekit.planning.costs import MeasuredCosts
from edgekit.planning.link import Link
from edgekit.planning.plan import Links, Plan, PlanLimits, Power, Way

MARGIN = 0.1
BEHIND = Link(1000.0, 10.0)  # between edge and cloud, which no device measures


@dataclass(frozen=True)
class Rated:
    """A plan over the usual link, and its latency over the slow one. `broken`: the limits that it breaks."""

    plan: Plan
    slow_ms: float
    broken: tuple[str, ...] = ()

    @property
    def cost_ms(self) -> float:
        return 0.5 * (self.plan.latency_ms + self.slow_ms)

    @property
    def rate(self) -> int:
        return self.plan.rates[0] if self.plan.rates else 0


@dataclass(frozen=True)
class Chosen:
    """`rated`: the best of each variant, the chosen one first. `kept`: another would be faster, but not by enough."""

    best: Rated
    rated: tuple[Rated, ...]
    kept: bool
    why: str


def scaled(ways: Sequence[Way], scale: float) -> tuple[Way, ...]:
    """The device's parts and codecs take `scale` times as long; the servers' what they did."""
    costs = MeasuredCosts(tuple(ways))
    part = next(
        (stage for way in ways for stage in way.stages if stage.tier == "device" and stage.latency_ms > 0), None
    )
    if part is None or scale == 1.0:
        return tuple(ways)
    costs.observe(part.part, scale * part.latency_ms)
    return costs.corrected()


def links_of(link: Link | None) -> Links:
    return {} if link is None else {("device", "edge"): link, ("edge", "cloud"): BEHIND}


def choose_variant(
    ways: Sequence[Way],
    usual: Link | None,
    slow: Link | None,
    limits: PlanLimits,
    power: Power | None = None,
    current: tuple[str, int] | None = None,
    margin: float = MARGIN,
) -> Chosen:
    """`current`: (variant, rate) that the device was told. Without a link only ways that stay on the device count.
    Raises PlanError that names the limit which binds."""
    rated = _rated(ways, usual, slow, limits, power)
    allowed = [one for one in rated if not one.broken]
    if not allowed:
        raise refusal([one.plan for one in rated], limits)
    best = min(allowed, key=lambda one: (one.cost_ms, one.plan.drop, one.plan.bytes_sent))
    present = next((one for one in allowed if (one.plan.variant, one.rate) == current), None)
    kept = False
    if present is not None and present != best:
        faster = (
            best.plan.latency_ms <= (1 - margin) * present.plan.latency_ms
            and best.slow_ms <= (1 - margin) * present.slow_ms
        )
        best, kept = (best, False) if faster else (present, True)
    shown = [best]
    for variant in dict.fromkeys(one.plan.variant for one in rated):
        own = [one for one in rated if one.plan.variant == variant]
        if variant != best.plan.variant:
            shown.append(min(own, key=lambda one: (bool(one.broken), one.cost_ms)))
    shown[1:] = sorted(shown[1:], key=lambda one: (bool(one.broken), one.cost_ms))
    return Chosen(best, tuple(shown), kept, _why(best, shown[1:], kept))


def _rated(
    ways: Sequence[Way], usual: Link | None, slow: Link | None, limits: PlanLimits, power: Power | None
) -> list[Rated]:
    def rates(way: Way) -> list[tuple[int, ...]]:
        return lean_rates(way, limits.drop) or lean_rates(way)

    found = plans(ways, links_of(usual), power, rates)
    slowly = {(plan.variant, plan.rates): plan.latency_ms for plan in plans(ways, links_of(slow), power, rates)}
    return [Rated(plan, slowly[plan.variant, plan.rates], tuple(exceeded(plan, limits))) for plan in found]


def _why(best: Rated, others: Sequence[Rated], kept: bool) -> str:
    told = f"{best.plan.latency_ms:.3g} ms expected, {best.slow_ms:.3g} ms when the link is slow"
    rival = next((one for one in others if not one.broken), None)
    if rival is None:
        return f"{told}; nothing else can run within the limits"
    against = f"{rival.plan.variant} {rival.plan.latency_ms:.3g} and {rival.slow_ms:.3g} ms"
    return f"{told}; {against}{', not faster by enough to change' if kept else ''}"
