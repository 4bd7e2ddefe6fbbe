"""What a bundle can do over given links, laid out for people: the front, the choice, and why other ways lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from edgekit.bundle.manifest import Manifest, Tier
from edgekit.devices.device import load_device
from edgekit.errors import PlanError
from edgekit.planning.choose import UNITS, WORDS, bound_ms, exceeded, front, pick, plans
from edgekit.planning.plan import Hop, Links, Objective, Plan, PlanLimits, Power, Way
from edgekit.planning.ways import power_of, ways

SWEEP_MBPS = (0.05, 2000.0)
SWEEP_STEPS = 120


@dataclass(frozen=True)
class Reason:
    """The best plan of one way, and `why` it was not taken (`lost`) or that it was."""

    variant: str
    best: Plan
    why: str
    lost: bool


@dataclass(frozen=True)
class Stretch:
    """Bandwidths over which one variant is chosen; rates, latency and drop at both ends. `variant` None: no plan
    meets the limits there, `binding` says which."""

    low_mbps: float
    high_mbps: float
    variant: str | None
    first_rates: tuple[int, ...] = ()
    last_rates: tuple[int, ...] = ()
    slowest_ms: float = 0.0
    fastest_ms: float = 0.0
    least_drop: float = 0.0
    most_drop: float = 0.0
    binding: str = ""

    @property
    def rates_text(self) -> str:
        """Counted from 1, the finest; "-" where nothing is sent."""
        ends = [", ".join(str(index + 1) for index in rates) for rates in (self.first_rates, self.last_rates)]
        return "-" if not self.first_rates else ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


@dataclass(frozen=True)
class Outlook:
    """`front`: the plans that nothing beats, whether within the limits or not."""

    ways: tuple[Way, ...]
    links: Links
    device: str
    power: Power | None
    objective: Objective
    limits: PlanLimits
    plans: tuple[Plan, ...]
    front: tuple[Plan, ...]

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        links: Links,
        device: str | None = None,
        servers: Mapping[Tier, str] | None = None,
        objective: Objective | None = None,
        limits: PlanLimits | None = None,
    ) -> Outlook:
        """`device` and `servers` name profiles, the manifest's own without. Raises UnknownNameError for another name,
        DeviceError and PlanError as `ways` does."""
        profile = load_device(device or manifest.device)
        found = ways(manifest, profile, {tier: load_device(name) for tier, name in (servers or {}).items()})
        power = power_of(profile)
        candidates = plans(found, links, power)
        return cls(
            ways=found,
            links=links,
            device=profile.name,
            power=power,
            objective=objective or Objective(),
            limits=limits or PlanLimits(),
            plans=tuple(candidates),
            front=tuple(front(candidates)),
        )

    def chosen(self) -> Plan:
        """Raises PlanError that names the limit which binds."""
        return pick(self.plans, self.objective, self.limits)

    def shown(self, chosen: Plan) -> list[Plan]:
        """The front with the chosen plan, which a limit on memory may have kept off it; fastest first."""
        return sorted({*self.front, chosen}, key=lambda plan: (plan.latency_ms, plan.energy_mj, plan.bytes_sent))

    def way(self, plan: Plan) -> Way:
        return next(way for way in self.ways if way.variant == plan.variant)

    def bound_ms(self, plan: Plan) -> float:
        return bound_ms(self.way(plan), plan.rates, self.links)

    def broken(self, plan: Plan) -> list[str]:
        """Each limit that `plan` breaks, in words."""
        return [
            f"{WORDS[name]} {_figure(getattr(plan, name))} {UNITS[name]}, allowed {_figure(getattr(self.limits, name))}"
            for name in exceeded(plan, self.limits)
        ]

    def reasons(self, chosen: Plan) -> list[Reason]:
        """One a way, the chosen one first, then by cost: those that could run before those that break a limit."""
        found = []
        for way in self.ways:
            own = [plan for plan in self.plans if plan.variant == way.variant]
            allowed = [plan for plan in own if not any(exceeded(plan, self.limits))]
            if own:
                best = chosen if way.variant == chosen.variant else min(allowed or own, key=self._closest)
                found.append(self._reason(best, chosen, is_allowed=bool(allowed)))
        return sorted(found, key=lambda reason: (reason.lost, bool(self.broken(reason.best)), self._cost(reason.best)))

    def sweep(self, hop: Hop = ("device", "edge")) -> list[Stretch]:
        """From slow to fast over bandwidths of the link `hop`, its round trip and loss as they are."""
        low, high = SWEEP_MBPS
        steps = [low * (high / low) ** (index / SWEEP_STEPS) for index in range(SWEEP_STEPS + 1)]
        found: list[Stretch] = []
        for bandwidth in steps:
            here = self._at({**self.links, hop: replace(self.links[hop], bandwidth_mbps=bandwidth)}, bandwidth)
            if found and (found[-1].variant, found[-1].binding) == (here.variant, here.binding):
                found[-1] = _joined(found[-1], here)
            else:
                found.append(here)
        # Each stretch ends where the next one was first seen.
        return [replace(stretch, high_mbps=after.low_mbps) for stretch, after in pairwise(found)] + found[-1:]

    def _at(self, links: Links, bandwidth: float) -> Stretch:
        try:
            plan = pick(plans(self.ways, links, self.power), self.objective, self.limits)
        except PlanError as error:
            return Stretch(bandwidth, bandwidth, None, binding=WORDS.get(error.binding, error.binding))
        rates, latency_ms = plan.rates, plan.latency_ms
        return Stretch(bandwidth, bandwidth, plan.variant, rates, rates, latency_ms, latency_ms, plan.drop, plan.drop)

    def _reason(self, best: Plan, chosen: Plan, *, is_allowed: bool) -> Reason:
        if best == chosen:
            return Reason(best.variant, best, "chosen", lost=False)
        if not is_allowed:
            return Reason(best.variant, best, "; ".join(self.broken(best)), lost=True)
        more = {
            "ms": self.objective.latency * (best.latency_ms - chosen.latency_ms),
            "mJ": self.objective.energy * (best.energy_mj - chosen.energy_mj),
            "bytes": self.objective.bytes * (best.bytes_sent - chosen.bytes_sent),
        }
        weighted = {unit: value for unit, value in more.items() if value}
        words = ", ".join(
            f"{_figure(abs(value))} {unit} {'more' if value > 0 else 'less'}" for unit, value in weighted.items()
        )
        return Reason(
            best.variant, best, words or f"equal, {_figure(best.drop - chosen.drop)} points more lost", lost=True
        )

    def _closest(self, plan: Plan) -> tuple[float, ...]:
        """By how far the limits are broken, then by cost."""
        over = [
            (float(getattr(plan, name)) - float(getattr(self.limits, name)))
            / max(abs(getattr(self.limits, name)), 1e-9)
            for name in exceeded(plan, self.limits)
        ]
        return (max(over, default=0.0), self._cost(plan), plan.drop, plan.bytes_sent)

    def _cost(self, plan: Plan) -> float:
        return self.objective.cost(plan)


def _joined(first: Stretch, last: Stretch) -> Stretch:
    return replace(
        first,
        high_mbps=last.high_mbps,
        last_rates=last.last_rates,
        slowest_ms=max(first.slowest_ms, last.slowest_ms),
        fastest_ms=min(first.fastest_ms, last.fastest_ms),
        least_drop=min(first.least_drop, last.least_drop),
        most_drop=max(first.most_drop, last.most_drop),
    )


def _figure(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
