"""What a search expected, what it built, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import PlanError
from edgekit.search.limits import SearchLimits
from edgekit.search.space import Configuration
from edgekit.search.verify import Verified


@dataclass(frozen=True)
class Proposal:
    """`figures`: what is expected, by the names that limits have."""

    configuration: Configuration
    figures: Mapping[str, float]
    error: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """`verified`: all, in the order in which they were built; `front`: those of them that no other beats in drop,
    latency and size. `expected`: the front as the repaired model sees it."""

    verified: tuple[Verified, ...]
    front: tuple[Verified, ...]
    expected: tuple[Proposal, ...]
    limits: SearchLimits
    seconds: float
    complete: bool

    @property
    def choice(self) -> Configuration | None:
        """None where nothing meets the limits."""
        return None

    def to_json(self) -> dict[str, Any]:
        """The front, with what was expected of each before it was built."""
        return {
            "front": [_row(one) for one in self.front],
            "verified": len(self.verified),
            "complete": self.complete,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Outcome(Found):
    """`chosen` meets the limits."""

    chosen: Verified

    @property
    def choice(self) -> Configuration:
        return self.chosen.configuration

    def told(self) -> str:
        """One line for a report."""
        end = "nothing better is expected" if self.complete else "the time was spent"
        chosen = self.chosen
        text = f"{chosen.drop:.2f} points lost in {chosen.latency_ms:.3g} ms"
        if chosen.expected:
            text += f" ({chosen.expected['drop']:.2f} in {chosen.expected['latency_ms']:.3g} expected)"
        built = sum(not one.failed for one in self.verified)
        return f"searched: {built} recipes built, {end}; chosen {chosen.configuration}: {text}"

    def to_json(self) -> dict[str, Any]:
        return {"chosen": _row(self.chosen), **super().to_json()}


def refusal(name: str, found: Found) -> PlanError:
    """Why nothing of the model `name` was chosen, with the nearest of what was built; `found` goes with it."""
    error = _refusal(name, found.verified, found.limits, complete=found.complete)
    error.found = found
    return error


def _refusal(name: str, tried: Sequence[Verified], limits: SearchLimits, *, complete: bool) -> PlanError:
    """`complete`: the search ended before its time, as nothing else was expected to come nearer."""
    built = [one for one in tried if not one.failed]
    if not built:
        whys = "; ".join(f"{one.configuration}: {one.failed}" for one in tried)
        return PlanError(f"no recipe of {name} could be built: {whys or 'none fits the device'}")
    nearest = min(built, key=lambda one: limits.excess(one.figures()))
    broken = limits.broken(nearest.figures())
    return PlanError(
        f"no recipe of {name} was found that meets the limits; the nearest, {nearest.configuration}, has "
        + ", ".join(stated(limit, nearest.figures()[limit], getattr(limits, limit)) for limit in broken),
        binding=",".join(broken),
        hint="raise a limit to what the nearest has: nothing else is expected to come nearer"
        if complete
        else "raise a limit to what the nearest has, or give the search more time with --budget",
    )


def _row(one: Verified) -> dict[str, Any]:
    return {"recipe": str(one.configuration), "low": one.low, "high": one.high, "expected": dict(one.expected)} | {
        name: value for name, value in one.figures().items() if value is not None
    }


def stated(name: str, value: float | None, limit: float) -> str:
    """`9.2 ms of latency, allowed 8`"""
    assert value is not None
    texts = {
        "latency_ms": ("ms of latency", 1.0),
        "size_bytes": ("MB of size", 1e6),
        "memory_bytes": ("MB of memory", 1e6),
        "bytes_sent": ("bytes sent", 1.0),
        "energy_mj": ("mJ of energy", 1.0),
        "drop": ("points lost", 1.0),
    }
    words, unit = texts[name]
    return f"{value / unit:.3g} {words}, allowed {limit / unit:.3g}"
