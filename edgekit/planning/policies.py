"""The policies that a simulation compares: what a coordinator could do, and what nobody can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.planning.choose import lean_rates
from edgekit.planning.plan import Crossing, RateCost, Way, evaluate
from edgekit.planning.simulate import Seen, local_ms
from edgekit.planning.world import Choice, World


class _Unlearning:
    """What policies share that look at no measurement."""

    name: str

    def observe(self, seen: Seen) -> None:
        return

    def probe_bytes(self, now_s: float, choice: Choice) -> int:
        return 0


@dataclass
class Fixed(_Unlearning):
    """Always the same."""

    name: str
    choice: Choice

    def choose(self, now_s: float, world: World) -> Choice:
        return self.choice


@dataclass
class Neurosurgeon(_Unlearning):
    """Raw features at the best cut for the link of the moment, which it is told (Kang et al., ASPLOS 2017): min over
    the cuts of device + bytes / bandwidth + server. `choices` hold the whole model here and above as well."""

    choices: Sequence[Choice]
    name: str = "neurosurgeon"

    def choose(self, now_s: float, world: World) -> Choice:
        now = world.conditions(now_s)
        local = [choice for choice in self.choices if choice.way.is_local]
        if not now.up and local:
            return local[0]
        links = world.links(now.link())
        return min(self.choices, key=lambda choice: evaluate(choice.way, choice.rates, links).latency_ms)


@dataclass
class Oracle(_Unlearning):
    """For each request what is expected to be the fastest, with the trace known, the future of it as well."""

    choices: Sequence[Choice]
    name: str = "oracle"

    def choose(self, now_s: float, world: World) -> Choice:
        return min(self.choices, key=lambda choice: world.expected_ms(choice, now_s))


def choices(ways: Sequence[Way], max_drop: float | None = None) -> list[Choice]:
    """Each way at each rate that can be the fastest within `max_drop` points."""
    return [Choice(way, rates) for way in ways for rates in lean_rates(way, max_drop)]


def within(choice: Choice, max_drop: float | None) -> bool:
    return max_drop is None or choice.drop <= max_drop + 1e-9


def is_offload(way: Way) -> bool:
    """Nothing runs on the device."""
    return bool(way.crossings) and way.stages[0].tier != "device"


def is_cascade(way: Way) -> bool:
    return way.local_share > 0


def is_three_tier(way: Way) -> bool:
    return {"device", "edge", "cloud"} <= set(way.tiers)


def is_split(way: Way) -> bool:
    """Cut once, between the device and one server, and every sample goes up."""
    return bool(way.crossings) and not (is_offload(way) or is_cascade(way) or is_three_tier(way))


def raw_ways(ways: Sequence[Way], raw_bytes: Mapping[str, float]) -> list[Way]:
    """The same cuts with plain features on the wire: `raw_bytes` by codec. Ways with exits, or with a codec that
    `raw_bytes` does not know, are left out."""
    found = []
    for way in ways:
        if is_cascade(way) or any(crossing.codec not in raw_bytes for crossing in way.crossings):
            continue
        crossings = tuple(
            Crossing(crossing.codec, crossing.hop, (RateCost(raw_bytes[crossing.codec], 0.0),))
            for crossing in way.crossings
        )
        found.append(replace(way, crossings=crossings))
    return sorted(found, key=lambda way: (not way.is_local, local_ms(way)))
