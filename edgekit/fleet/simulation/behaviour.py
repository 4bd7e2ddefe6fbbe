"""What simulated devices measure: sampled, with a seed, so that a run can be repeated.

Latencies are log-normal around the device's own median; agreement and errors are shares; a link has a median of its
own. A bad bundle changes them in one of three ways, none of which its golden answers show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekit.fleet.protocol.windows import Health, LinkSeen, Window
from edgekit.fleet.telemetry.histogram import BUCKETS_PER_OCTAVE, bucket_of

# wrong: it answers golden inputs right, and others wrong; slow: five times as long; crash: its process ends after some
# seconds, whereupon the agent falls back by itself.
Fault = Literal["wrong", "slow", "crash"]
FAULTS: tuple[Fault, ...] = ("wrong", "slow", "crash")

SLOWER = 5.0
WRONG_AGREEMENT = 0.6
SPREAD = 0.25  # of the logarithm of a latency
DEVICES_SPREAD = 0.15  # of the logarithm of the medians of devices
REACH = 10  # buckets on either side of the median: four standard deviations


@dataclass(frozen=True)
class Behaviour:
    """Of all devices. `rate`: requests a second; `latency_ms`: the median; `errors`: share of requests; `compared`:
    share of answers that the cloud gives too; `agreement`: share of those that agree; `drift`: how far the mean of the
    inputs moves in an hour, as a share of it."""

    rate: float = 1.0
    latency_ms: float = 40.0
    errors: float = 0.0005
    compared: float = 0.2
    agreement: float = 0.985
    bandwidth_mbps: float = 20.0
    drift: float = 0.0


def _bell(spread: float, reach: int) -> np.ndarray:
    """Shares of buckets around the median one, of a log-normal value."""
    step = math.log(2) / BUCKETS_PER_OCTAVE
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / spread) ** 2)
    shares: np.ndarray = weights / weights.sum()
    return shares


_LATENCY = _bell(SPREAD, REACH)
_INPUTS = _bell(0.2, 6)
# Confidence: most answers are sure.
_CONFIDENCE = np.array([0.01, 0.02, 0.03, 0.06, 0.13, 0.25, 0.5])


class Senses:
    """Of one device: what it is like, and what it measures."""

    def __init__(self, behaviour: Behaviour, seed: int) -> None:
        self._behaviour = behaviour
        self._random = np.random.default_rng(seed)
        self._median_ms = behaviour.latency_ms * math.exp(DEVICES_SPREAD * self._random.standard_normal())
        self._bandwidth_mbps = behaviour.bandwidth_mbps * math.exp(0.4 * self._random.standard_normal())

    def window(
        self, sequence: int, started_at: float, seconds: float, digest: str, fault: Fault | None, age_s: float = 0.0
    ) -> Window:
        """`age_s`: how long the inputs have drifted."""
        own, random = self._behaviour, self._random
        requests = int(random.poisson(own.rate * seconds))
        errors = int(random.binomial(requests, own.errors))
        answered = requests - errors
        compared = int(random.binomial(answered, own.compared))
        agreement = WRONG_AGREEMENT if fault == "wrong" else own.agreement
        median_ms = self._median_ms * (SLOWER if fault == "slow" else 1.0)
        inputs = 0.45 * (1 + own.drift * age_s / 3600)
        return Window(
            sequence=sequence,
            started_at=started_at,
            seconds=seconds,
            digest=digest,
            plan="whole",
            answered=answered,
            errors=errors,
            compared=compared,
            agreed=int(random.binomial(compared, agreement)),
            latency=self._fall(answered, _LATENCY, bucket_of(median_ms) - REACH),
            confidence=self._fall(answered, _CONFIDENCE, -(len(_CONFIDENCE) - 1)),
            inputs=self._fall(answered, _INPUTS, bucket_of(inputs) - 6),
            link=LinkSeen(
                bandwidth_mbps=float(self._bandwidth_mbps * random.uniform(0.8, 1.2)),
                rtt_ms=float(random.uniform(8, 30)),
                loss=0.0,
            ),
            health=Health(temperature_c=round(float(random.uniform(45, 60)), 1)),
        )

    def _fall(self, count: int, shares: np.ndarray, first: int) -> dict[int, int]:
        """`count` values among buckets from `first` on."""
        found = self._random.multinomial(count, shares)
        return {first + bucket: int(number) for bucket, number in enumerate(found) if number}
