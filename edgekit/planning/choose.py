"""The choice at run time: every way at every rate, the cheapest within the limits, and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import product

from edgekit.errors import PlanError
from edgekit.planning.plan import Costing, Links, Objective, Plan, PlanLimits, Power, Way, path

UNITS = {"latency_ms": "ms", "energy_mj": "mJ", "bytes_sent": "bytes", "drop": "points", "memory_bytes": "bytes"}
WORDS = {
    "latency_ms": "latency",
    "energy_mj": "energy",
    "bytes_sent": "bytes sent",
    "drop": "drop",
    "memory_bytes": "memory on the device",
}
OPTIONS = {
    "latency_ms": "--max-latency",
    "energy_mj": "--max-energy",
    "bytes_sent": "--max-bytes",
    "drop": "--max-drop",
    "memory_bytes": "--max-memory",
}
# Sums of the same numbers in another order differ in their last digits; that is no reason to refuse a plan.
SLACK = 1 + 1e-9


def all_rates(way: Way) -> list[tuple[int, ...]]:
    """Each combination of one rate a crossing; the empty one where nothing is crossed."""
    return list(product(*(range(len(crossing.rates)) for crossing in way.crossings)))


def lean_rates(way: Way, max_drop: float | None = None) -> list[tuple[int, ...]]:
    """The combinations that lose no more than `max_drop` points, without those that send more on one crossing and
    less on none than another does: under no link are they faster or cheaper."""
    found = all_rates(way)
    if max_drop is not None:
        found = [rates for rates in found if _drop(way, rates) <= max_drop + abs(max_drop) * (SLACK - 1) + 1e-9]
    sizes = [tuple(c.rates[rate].size_bytes for c, rate in zip(way.crossings, rates, strict=True)) for rates in found]
    distinct = set(sizes)
    return [rates for rates, own in zip(found, sizes, strict=True) if not any(_below(o, own) for o in distinct)]


def plans(
    ways: Sequence[Way],
    links: Links,
    power: Power | None = None,
    rates_of: Callable[[Way], Sequence[tuple[int, ...]]] = all_rates,
) -> list[Plan]:
    """Every way at each of its `rates_of`. A way that needs a link which is not given is left out."""
    found = []
    for way in ways:
        try:
            costing = Costing(way, links, power)
        except KeyError:
            continue
        found += [costing.plan(rates) for rates in rates_of(way)]
    return found


def choose(
    ways: Sequence[Way],
    links: Links,
    objective: Objective | None = None,
    limits: PlanLimits | None = None,
    power: Power | None = None,
) -> Plan:
    """The plan of least cost within the limits; among equals the one that loses least, then sends least.

    Raises PlanError that names the binding limit, what is allowed and what would be the best.
    """
    return pick(plans(ways, links, power), objective, limits)


def pick(candidates: Sequence[Plan], objective: Objective | None = None, limits: PlanLimits | None = None) -> Plan:
    """`choose` among plans that are there already."""
    objective, limits = objective or Objective(), limits or PlanLimits()
    allowed = [plan for plan in candidates if not any(exceeded(plan, limits))]
    if not allowed:
        raise refusal(candidates, limits)
    return min(allowed, key=lambda plan: (objective.cost(plan), plan.drop, plan.bytes_sent, plan.latency_ms))


def exceeded(plan: Plan, limits: PlanLimits) -> Iterator[str]:
    """The names of the limits that `plan` breaks."""
    for name in UNITS:
        limit = getattr(limits, name)
        if limit is not None and getattr(plan, name) > limit + abs(limit) * (SLACK - 1):
            yield name


def refusal(candidates: Sequence[Plan], limits: PlanLimits) -> PlanError:
    """The error for candidates none of which meets `limits`: the limit that nothing meets even alone, or the one that
    is missed by least where the others are met."""
    if not candidates:
        return PlanError("no way can run: each needs a link that is not given", binding="links", hint="give --link")
    broken = [(plan, set(exceeded(plan, limits))) for plan in candidates]
    set_limits = [field.name for field in fields(limits) if getattr(limits, field.name) is not None]
    alone = [name for name in set_limits if all(name in names for _, names in broken)]
    near = {
        name: [plan for plan, names in broken if names == {name}]
        for name in set_limits
        if any(names == {name} for _, names in broken)
    }
    if alone:
        binding = max(alone, key=lambda name: _excess(_least(candidates, name), limits, name))
    elif near:
        binding = min(near, key=lambda name: _excess(_least(near[name], name), limits, name))
    else:
        fewest = min((names for _, names in broken), key=len)
        words = " and ".join(WORDS[name] for name in set_limits if name in fewest)
        return PlanError(
            f"no plan meets the limits: {words} cannot be met together with the others",
            binding=",".join(name for name in set_limits if name in fewest),
            hint="loosen one of " + ", ".join(OPTIONS[name] for name in set_limits),
        )
    pool = near.get(binding) or list(candidates)
    others = " within the other limits" if binding in near and len(set_limits) > 1 else ""
    best, limit, unit = _least(pool, binding), getattr(limits, binding), UNITS[binding]
    plan = min(pool, key=lambda plan: getattr(plan, binding))
    return PlanError(
        f"no plan meets the limit on {WORDS[binding]}: {best:.4g} {unit} at best{others}, allowed {limit:.4g}",
        binding=binding,
        hint=f"{plan.variant} reaches it: {OPTIONS[binding]} {_rounded_up(best):g}, or export with another limit",
    )


def front(candidates: Sequence[Plan]) -> list[Plan]:
    """The plans that no other beats in latency, energy, bytes and drop at once, fastest first; of equals the first."""
    kept: list[tuple[tuple[float, ...], Plan]] = []
    keyed = [((plan.latency_ms, plan.energy_mj, plan.bytes_sent, plan.drop), plan) for plan in candidates]
    # In lexicographic order a plan can only be beaten by one before it.
    for key, plan in sorted(keyed, key=lambda pair: pair[0]):
        if not any(all(a <= b for a, b in zip(other, key, strict=True)) for other, _ in kept):
            kept.append((key, plan))
    return [plan for _, plan in kept]


def bound_ms(way: Way, rates: Sequence[int], links: Links) -> float:
    """What no implementation of this way can beat: rooflines of the parts, bytes at full rate, half a round trip each
    way. Codecs, dispatch and the exit count as free. Raises KeyError for a link that is not given."""
    local = sum(stage.bound_ms for stage in way.stages if stage.tier == "device")
    remote = sum(stage.bound_ms for stage in way.stages if stage.tier != "device")
    for crossing, index in zip(way.crossings, rates, strict=True):
        for link in path(crossing.hop, links):
            remote += link.one_way_ms(crossing.rates[index].size_bytes) + link.one_way_ms(way.answer_bytes)
    return local + (1 - way.local_share) * remote


def _drop(way: Way, rates: Sequence[int]) -> float:
    return way.drop + way.exit_drop + sum(c.rates[rate].drop for c, rate in zip(way.crossings, rates, strict=True))


def _below(sizes: Sequence[float], others: Sequence[float]) -> bool:
    return sizes != others and all(a <= b for a, b in zip(sizes, others, strict=True))


def _least(candidates: Sequence[Plan], name: str) -> float:
    return min(float(getattr(plan, name)) for plan in candidates)


def _excess(value: float, limits: PlanLimits, name: str) -> float:
    """How far beyond the limit, in parts of it."""
    limit = float(getattr(limits, name))
    return (value - limit) / max(abs(limit), 1e-9)


def _rounded_up(value: float) -> float:
    """To three digits, never below: what is suggested must be reachable."""
    step = 10.0 ** (len(f"{abs(value):.0f}") - 3)
    return -(-value // step) * step if value else 0.0
