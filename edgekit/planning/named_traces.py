"""Six links by name, made from a seed: steady ones, a cellular one, one that is walked away from, one with outages.

Every figure is rounded to a fixed number of decimals at each step, so that a seed gives the same trace on every
machine. Only `random.Random.random` is drawn from: its sequence is part of Python's promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from edgekit.errors import UnknownNameError, UsageError
from edgekit.planning.traces import Conditions, Trace, evenly

DURATION_S = 120
STEP_S = 0.1
STEPS = round(DURATION_S / STEP_S)


def trace_named(name: str, seed: int = 0) -> Trace:
    """One of `TRACES`, 120 s long. Raises UnknownNameError, and UsageError for a negative seed."""
    if name not in TRACES:
        raise UnknownNameError("trace", name, TRACES)
    if seed < 0:
        raise UsageError(f"seed {seed}, allowed from 0")
    # Each trace has a sequence of its own, whatever else is drawn with the same seed.
    return TRACES[name](Random(1009 * seed + 17 * list(TRACES).index(name)))


def _steady(name: str, bandwidth_mbps: float, rtt_ms: float) -> Callable[[Random], Trace]:
    def make(_: Random) -> Trace:
        return Trace(name, (0.0,), (Conditions(bandwidth_mbps, rtt_ms),), float(DURATION_S))

    return make


def _lte(random: Random) -> Trace:
    """The logarithm of the bandwidth follows an autoregressive process (time constant 2 s) between 2 and 60 Mbit/s;
    the round trip of 30 to 80 ms is the longer, the slower the cell is."""
    middle, spread, memory = math.log(12.0), 0.75, math.exp(-STEP_S / 2.0)
    level, pieces = 0.0, []
    for _ in range(STEPS):
        level = round(memory * level + math.sqrt(1 - memory**2) * spread * _normal(random), 6)
        bandwidth = round(min(60.0, max(2.0, math.exp(middle + level))), 2)
        slow = 1 - math.log(bandwidth / 2.0) / math.log(30.0)
        rtt = round(min(80.0, max(30.0, 32 + 40 * slow + 3 * _normal(random))), 1)
        pieces.append(Conditions(bandwidth, rtt, jitter_ms=3.0))
    return evenly("lte", STEP_S, pieces)


def _wifi_walk(random: Random) -> Trace:
    """From 80 down to 1 Mbit/s, evenly in the logarithm, with fades of 0.3 to 2 s to a quarter; losses and delay grow
    with the distance."""
    ratio, fading, pieces = math.log(80.0), 0, []
    for index in range(STEPS):
        far = index / (STEPS - 1)
        if fading == 0 and random.random() < 0.008 + 0.012 * far:
            fading = 3 + int(17 * random.random())
        bandwidth = 80.0 * math.exp(-ratio * far) * math.exp(0.12 * _normal(random))
        if fading > 0:
            fading -= 1
            bandwidth /= 4
        bandwidth = round(min(80.0, max(0.5, bandwidth)), 2)
        rtt = round(3 + 22 * far**2 + 2 * far * random.random(), 1)
        pieces.append(Conditions(bandwidth, rtt, jitter_ms=round(2 * far, 1), loss=round(0.01 * far**2, 3)))
    return evenly("wifi-walk", STEP_S, pieces)


def _outages(random: Random) -> Trace:
    """10 Mbit/s and 20 ms, down for 0.5 to 5 s each time after 4 to 16 s."""
    up, down = Conditions(10.0, 20.0), Conditions(10.0, 20.0, up=False)
    pieces: list[Conditions] = []
    while len(pieces) < STEPS:
        pieces += [up] * (40 + int(120 * random.random()))
        pieces += [down] * (5 + int(46 * random.random()))
    return evenly("outages", STEP_S, [*pieces[: STEPS - 10], *[up] * 10])


def _normal(random: Random) -> float:
    """Twelve uniform draws: close to a normal deviate, and without a library's logarithm or cosine."""
    return sum(random.random() for _ in range(12)) - 6.0


TRACES: dict[str, Callable[[Random], Trace]] = {
    "steady-1": _steady("steady-1", 1.0, 60.0),
    "steady-10": _steady("steady-10", 10.0, 20.0),
    "steady-100": _steady("steady-100", 100.0, 4.0),
    "lte": _lte,
    "wifi-walk": _wifi_walk,
    "outages": _outages,
}
