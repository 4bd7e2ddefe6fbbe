"""The highest rate at which one node with given settings holds an objective: measured, by rising loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.manifest import Manifest, Tier
from edgekit.capacity.calibration import pinned
from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.probe import Caller, Cores, serving
from edgekit.tuning.settings import Settings

# Shares of what a closed loop got out of the node, rising; after the first that fails the gap below it is halved.
LOADS = (0.3, 0.5, 0.7, 0.85, 0.95, 1.05)
HALVINGS = 2
# Below so many requests a percentile says nothing.
LEAST_REQUESTS = 60
LONGEST_LOAD_S = 20.0


@dataclass(frozen=True)
class Load:
    """`percentile_ms` of the objective at `rate_hz`; refused and lost requests count as late."""

    rate_hz: float
    percentile_ms: float
    requests: int
    refused: int


@dataclass(frozen=True)
class Trial:
    """`rate_hz`: the highest rate that held the objective, 0 where none did; `percentile_ms` there (else at the lowest
    load tried). `closed_hz`: what as many callers as fit got out of it."""

    rate_hz: float
    percentile_ms: float
    closed_hz: float
    loads: tuple[Load, ...]

    @property
    def score(self) -> tuple[float, ...]:
        """Settings that hold the objective by their rate, others by how near they come."""
        return (self.rate_hz, -self.percentile_ms)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, value: Any) -> Trial:
        """Raises ValueError for what `to_json` does not write."""
        held = _fields(cls, value)
        loads = held["loads"]
        if not isinstance(loads, list | tuple):
            raise ValueError(f"loads are {loads!r:.40}")
        return cls(**{**held, "loads": tuple(Load(**_fields(Load, load)) for load in loads)})


def _fields(kind: type[Trial | Load], value: Any) -> dict[str, Any]:
    """Raises ValueError where `value` has others, or no numbers in them."""
    names = {field.name for field in fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError(f"{value!r:.60} is no {kind.__name__.lower()}")
    for name, number in value.items():
        if name != "loads" and (isinstance(number, bool) or not isinstance(number, int | float) or number != number):
            raise ValueError(f"{name} is {number!r:.40}")
    return value


def run_trial(
    bundle: Path, manifest: Manifest, tier: Tier, settings: Settings, objective: Objective, seconds: float, seed: int
) -> Trial:
    """A node of its own with `settings`, loaded for about `seconds` (its start comes on top).

    Raises NodeError where it does not start, RemoteError where it does not answer.
    """
    part = manifest.part(settings.part)
    cores = Cores.divide(settings.workers * settings.threads)
    with (
        serving(bundle, tier, settings.words, cores.node) as served,
        pinned(cores.client),
        Caller(served, manifest.name, part) as caller,
    ):
        caller.warm_up()
        in_flight = settings.workers * settings.max_batch + 8
        caller.together(in_flight, 0.1 * seconds)
        closed = caller.together(in_flight, 0.2 * seconds).answered_hz
        # Stops at the first load that fails, so that all of them are rarely sent.
        each_s = 0.7 * seconds / (0.6 * len(LOADS) + HALVINGS)

        def at(rate_hz: float) -> Load:
            count = int(max(LEAST_REQUESTS, rate_hz * each_s))
            count = max(1, min(count, int(rate_hz * LONGEST_LOAD_S)))
            found = caller.send(Arrivals.poisson(count, seed).at(rate_hz))
            return Load(rate_hz, objective.value_ms(found.latency_ms), count, found.refused)

        return climb(at, closed, objective)


def climb(at: Callable[[float], Load], closed_hz: float, objective: Objective) -> Trial:
    """`at` the rates of LOADS until one breaks the objective, then between the last two. What breaks it is sent once
    more: what else the machine did meanwhile must not decide."""
    loads: list[Load] = []
    held, broken = 0.0, math.inf

    def holds(rate_hz: float) -> bool:
        for _ in range(2):
            loads.append(at(rate_hz))
            if loads[-1].percentile_ms <= objective.limit_ms:
                return True
        return False

    for share in LOADS:
        rate_hz = max(share * closed_hz, 1e-3)
        if not holds(rate_hz):
            broken = rate_hz
            break
        held = rate_hz
    for _ in range(HALVINGS if math.isfinite(broken) else 0):
        middle = (held + broken) / 2
        held, broken = (middle, broken) if holds(middle) else (held, middle)
    return Trial(held, _percentile(loads, held), closed_hz, tuple(loads))


def _percentile(loads: Sequence[Load], held: float) -> float:
    if held:
        return float(np.min([load.percentile_ms for load in loads if load.rate_hz == held]))
    return float(np.min([load.percentile_ms for load in loads]))
