"""Policies: which way a request takes, given what the ways cost now and which nodes may be asked.

| policy       | runs                                                                        |
|--------------|-----------------------------------------------------------------------------|
| `local`      | all of it on the device                                                     |
| `offload`    | nothing on the device: the compressed input goes up                         |
| `split`      | a head here, the rest on one node                                           |
| `three-tier` | a head here, the middle on the edge, the tail in the cloud                  |
| `cascade`    | an early exit here, then the edge, then the cloud, while confidence is low  |
| `auto`       | whichever way is best now, looked at again as link and nodes change         |
| `fit`        | what loses least within the latency limit; spends least on a low battery    |

`local` takes a variant: `local:width-50`. `offload`, `split` and `three-tier` take a rate too: `split@2`,
`split:deep@2`. Without a rate the best one for the link is taken.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from edgekit.devices.battery import Battery, BatterySaver
from edgekit.errors import PlanError, UnknownNameError, UsageError
from edgekit.planning.choose import pick, plans
from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.fit import Fitter
from edgekit.planning.plan import Hop, Links, Objective, Plan, PlanLimits, Power, Way
from edgekit.planning.policies import is_offload, is_split, is_three_tier
from edgekit.planning.replan import Replanner
from edgekit.runtimes.coordinator.itinerary import Itinerary, Leg

_TEXT = re.compile(r"(?P<name>[a-z-]+)(?::(?P<variant>[^@]+))?(?:@(?P<rate>\d+))?")


@dataclass(frozen=True)
class Situation:
    """`ways`: those that this device and the nodes given could run. `refusals`: variant -> why not now. `links`: what
    the `estimates` say at `now_s`. `deadline_ms`: what the request has left. `battery`: None where there is none."""

    ways: Sequence[Way]
    estimates: Mapping[Hop, LinkEstimate]
    links: Links
    refusals: Mapping[str, str]
    local: str | None
    limits: PlanLimits = PlanLimits()
    objective: Objective = Objective()
    power: Power | None = None
    now_s: float = 0.0
    deadline_ms: float | None = None
    battery: Battery | None = None

    @property
    def open_ways(self) -> list[Way]:
        return [way for way in self.ways if way.variant not in self.refusals]


class Policy(ABC):
    """`choose` is called for every request; it raises PlanError only where nothing can be run at all. One that
    `uses_links` has silent ones probed; one that `needs_node` has no way that the device can go alone."""

    name: ClassVar[str]
    uses_links: ClassVar[bool] = True
    needs_node: ClassVar[bool] = False

    def __init__(self, variant: str | None = None, rate: int | None = None) -> None:
        self.variant, self.rate = variant, rate

    @abstractmethod
    def fits(self, way: Way) -> bool:
        """Whether a way is of this policy's kind."""

    def check(self, ways: Sequence[Way]) -> None:
        """Raises PlanError or UsageError, before the first request, where the bundle has no way of this kind."""
        mine = self.mine(ways)
        if not mine:
            raise PlanError(
                f"the policy {self} has no way to run: the bundle and the nodes given offer "
                + (", ".join(way.variant for way in ways) or "none"),
                binding="policy",
                hint=f"{_possible(ways)}; give --edge or --cloud, or export with --split, for more",
            )
        if self.rate is not None:
            ladder = min(len(way.crossings[0].rates) for way in mine if way.crossings) if mine[0].crossings else 0
            if self.rate >= ladder:
                raise UsageError(f"rate {self.rate}, allowed 0 to {ladder - 1}", hint="`edgekit inspect` lists them")

    def mine(self, ways: Sequence[Way]) -> list[Way]:
        return [way for way in ways if self.fits(way) and self.variant in (None, way.variant)]

    def choose(self, situation: Situation) -> Itinerary:
        candidates = self._candidates(self.mine(situation.open_ways), situation)
        if candidates:
            return self._itinerary(best(candidates, situation))
        refused = [situation.refusals[way.variant] for way in self.mine(situation.ways)]
        return self._fall_back(situation, refused[0] if refused else "no way of this policy can run")

    def _candidates(self, ways: Sequence[Way], situation: Situation) -> list[Plan]:
        found = plans(ways, situation.links, situation.power)
        return [plan for plan in found if self.rate is None or not plan.rates or plan.rates[0] == self.rate]

    def _itinerary(self, plan: Plan) -> Itinerary:
        return Itinerary((Leg(plan.variant, plan.rates),), policy=str(self))

    def _fall_back(self, situation: Situation, reason: str) -> Itinerary:
        if situation.local is None:
            # The refused way all the same: the execution says clearly what failed.
            mine = self.mine(situation.ways)
            if not mine:
                raise PlanError(f"{reason}, and no variant runs on the device alone", binding="policy")
            way = mine[0]
            return Itinerary((Leg(way.variant, (0,) * len(way.crossings)),), policy=str(self))
        return Itinerary((Leg(situation.local),), policy=str(self), degraded=True, reason=reason)

    def __str__(self) -> str:
        variant = f":{self.variant}" if self.variant is not None else ""
        return self.name + variant + (f"@{self.rate}" if self.rate is not None else "")


class Local(Policy):
    name = "local"
    uses_links = False

    def fits(self, way: Way) -> bool:
        return way.is_local


class Offload(Policy):
    name = "offload"
    needs_node = True

    def fits(self, way: Way) -> bool:
        return is_offload(way)


class Split(Policy):
    name = "split"
    needs_node = True

    def fits(self, way: Way) -> bool:
        return is_split(way)


class ThreeTier(Policy):
    name = "three-tier"
    needs_node = True

    def fits(self, way: Way) -> bool:
        return is_three_tier(way)


class Cascade(Policy):
    """Legs by where they end: the edge first, the cloud after it; both behind the exit of the first, where it has one.

    On each the cheapest way at the cheapest rate within the limits is taken.
    """

    name = "cascade"

    def fits(self, way: Way) -> bool:
        return bool(way.crossings)

    def check(self, ways: Sequence[Way]) -> None:
        super().check(ways)
        mine = self.mine(ways)
        if not _has_exit(mine):
            raise PlanError(
                "the policy cascade has no early exit in this bundle, whose confidence says when to go up",
                binding="policy",
                hint=f"{_possible(ways)}; export with more --train data for an exit",
            )
        if self.rate is not None:
            raise UsageError("a cascade chooses its rates", hint="leave @rate out, or use split@rate")

    def choose(self, situation: Situation) -> Itinerary:
        mine = self.mine(situation.ways)
        open_ways = [way for way in mine if way.variant not in situation.refusals]
        legs = []
        for tier in ("edge", "cloud"):
            # A head with an exit first: that is what makes it a cascade.
            ending = [way for way in open_ways if way.tiers[-1] == tier]
            exits = [way for way in ending if way.has_exit] or ending
            candidates = self._candidates(exits, situation)
            if candidates:
                plan = best(candidates, situation)
                legs.append(Leg(plan.variant, plan.rates))
        refused = [situation.refusals[way.variant] for way in mine if way.variant in situation.refusals]
        if not legs:
            return self._fall_back(situation, refused[0] if refused else "no node to go up to")
        return Itinerary(tuple(legs), policy=str(self))


class Auto(Policy):
    """The best way of all within the limits, changed with hysteresis (`edgekit.planning.replan`).

    Marked degraded where a node that may not be asked now would have been the better choice.
    """

    name = "auto"

    def __init__(self, variant: str | None = None, rate: int | None = None) -> None:
        if variant is not None or rate is not None:
            raise UsageError("auto chooses variant and rate itself", hint="fix them with split, as in split:deep@2")
        super().__init__()
        self._replanner: Replanner | None = None
        self._suggested: tuple[str, int] | None = None
        self._lock = threading.Lock()

    def suggest(self, variant: str, rate: int = 0) -> None:
        """Starts from there with the next request, where that is one of the ways; then goes on by what it measures."""
        with self._lock:
            self._suggested = (variant, rate)

    def fits(self, way: Way) -> bool:
        return True

    def choose(self, situation: Situation) -> Itinerary:
        ways = situation.open_ways
        if not ways:
            return self._fall_back(situation, "; ".join(dict.fromkeys(situation.refusals.values())))
        itinerary = self._decide(ways, situation)
        if situation.refusals:
            wanted = best(plans(situation.ways, situation.links, situation.power), situation)
            if wanted.variant in situation.refusals:
                return replace(itinerary, degraded=True, reason=situation.refusals[wanted.variant])
        return itinerary

    def _decide(self, ways: Sequence[Way], situation: Situation) -> Itinerary:
        with self._lock:
            if self._replanner is None:
                self._replanner = Replanner(situation.objective, situation.limits, situation.power)
            if self._suggested is not None:
                (variant, rate), self._suggested = self._suggested, None
                for way in ways:
                    if way.variant == variant:
                        self._replanner.start_from(variant, (rate,) * len(way.crossings))
            try:
                made = self._replanner.decide(ways, situation.estimates, situation.now_s, situation.deadline_ms)
            except PlanError:
                return self._itinerary(best(plans(ways, situation.links, situation.power), situation))
            return replace(self._itinerary(made.plan), overdue_ms=made.overdue_ms)


class Fit(Policy):
    """What loses least within the latency limit or the deadline, whichever is shorter; while the battery is low, what
    spends least within the limits. Changed with hysteresis (`edgekit.planning.fit`); the answer says what it cost.

    Marked degraded where nothing meets the limits: the nearest runs.
    """

    name = "fit"

    def __init__(self, variant: str | None = None, rate: int | None = None) -> None:
        if variant is not None or rate is not None:
            raise UsageError("fit chooses variant and rate itself", hint="fix them: local:NAME, or split:NAME@2")
        super().__init__()
        self._fitter, self._saver = Fitter(), BatterySaver()
        self._lock = threading.Lock()

    def fits(self, way: Way) -> bool:
        return True

    def choose(self, situation: Situation) -> Itinerary:
        down = {hop for hop, estimate in situation.estimates.items() if estimate.is_down(situation.now_s)}
        links = {hop: link for hop, link in situation.links.items() if hop not in down}
        found = plans(situation.open_ways, links, situation.power)
        if not found:
            return self._fall_back(situation, "; ".join(dict.fromkeys(situation.refusals.values())))
        with self._lock:
            saving = self._saver.look(situation.battery)
            fitted = self._fitter.decide(found, _with_deadline(situation), saving=saving)
        itinerary = self._itinerary(fitted.plan)
        if fitted.fits:
            return replace(itinerary, note=fitted.note)
        return replace(itinerary, degraded=True, reason=fitted.note)


def _with_deadline(situation: Situation) -> PlanLimits:
    """The limits, the latency's at most what the request has left."""
    latency_ms = min(
        (limit for limit in (situation.limits.latency_ms, situation.deadline_ms) if limit is not None), default=None
    )
    return replace(situation.limits, latency_ms=latency_ms)


def best(candidates: Sequence[Plan], situation: Situation) -> Plan:
    """The cheapest within the limits; where no plan meets the latency limit, the fastest within the others; where even
    those cannot be met, the one that loses least."""
    try:
        return pick(candidates, situation.objective, _with_deadline(situation))
    except PlanError:
        pass
    try:
        return pick(candidates, Objective(), replace(situation.limits, latency_ms=None))
    except PlanError:
        return min(candidates, key=lambda plan: (plan.drop, plan.latency_ms))


POLICIES: dict[str, type[Policy]] = {kind.name: kind for kind in (Local, Offload, Split, ThreeTier, Cascade, Auto, Fit)}


def _has_exit(ways: Sequence[Way]) -> bool:
    return any(way.has_exit for way in ways)


def _possible(ways: Sequence[Way]) -> str:
    """The policies that have a way among `ways`, as a hint says it."""
    kinds = [kind() for kind in POLICIES.values()]
    names = [kind.name for kind in kinds if kind.mine(ways) and (kind.name != "cascade" or _has_exit(ways))]
    return f"possible here: {', '.join(names) or 'none'}"


def make_policy(text: str) -> Policy:
    """`auto`, `split`, `split@2`, `split:deep@2` ... Raises UnknownNameError or UsageError."""
    match = _TEXT.fullmatch(text)
    name = match["name"] if match else text
    if match is None or name not in POLICIES:
        raise UnknownNameError("policy", name, POLICIES)
    return POLICIES[name](match["variant"], int(match["rate"]) if match["rate"] else None)
