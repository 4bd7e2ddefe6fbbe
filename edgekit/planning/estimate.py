"""What a link gives right now, learnt from the transfers that crossed it. Time comes in as a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.planning.link import Link

# Relative, one standard deviation: of the link that was given at the start; of what a second of silence may change,
# and of what any silence may; of a single transfer's time on a steady link.
FIRST_GUESS = 1.0
DRIFT_PER_S = 0.1
DRIFT_MOST = 0.5
NOISE = 0.08
NOISE_MS = 0.1
# Good news moves the estimate by at most this share of the surprise; bad news beyond two deviations, by all of it.
RECOVERY = 0.3
SURPRISE = 2.0
# This many transfers in a row that are faster than expected are no luck.
STREAK = 3
JITTER_MEMORY = 0.85
JITTER_MOST = 0.3
HALF_LIFE_S = 5.0
LEAST_RTT_MS = 0.02
LEAST_PACE = 1e-7


@dataclass
class LinkEstimate:
    """Round-trip time and pace (ms a byte) by a Kalman filter over `took = rtt + bytes x pace`.

    Transfers of different sizes tell the two apart; transfers of one size move whichever weighs more in them. Slower
    than expected is believed at once, faster only by and by: a plan that relies on a link that is gone costs a
    deadline, one that misses a link that came back costs a little time.
    """

    first: Link
    half_life_s: float = HALF_LIFE_S

    def __post_init__(self) -> None:
        self._rtt_ms = max(self.first.rtt_ms, LEAST_RTT_MS)
        self._pace = max(self.first.transfer_ms(1.0), LEAST_PACE)
        self._var_rtt = (FIRST_GUESS * self._rtt_ms) ** 2
        self._var_pace = (FIRST_GUESS * self._pace) ** 2
        self._covariance = 0.0
        self._jitter = NOISE**2
        self._seen_s: float | None = None
        self._faster = self.observations = 0

    def observe(self, size_bytes: float, took_ms: float, now_s: float, *, unfinished: bool = False) -> None:
        """A transfer of `size_bytes` (both ways together) was answered after `took_ms`, computing left out.

        `unfinished`: it has taken so long and is not answered; counts only where that is more than expected. Raises
        UsageError for a negative size or time.
        """
        if not (size_bytes >= 0 and took_ms >= 0 and math.isfinite(took_ms + size_bytes)):
            raise UsageError(f"a transfer of {size_bytes} bytes in {took_ms} ms, allowed from 0")
        self._age(now_s)
        expected = self._rtt_ms + size_bytes * self._pace
        surprise = took_ms - expected
        if unfinished and surprise <= 0:
            return
        noise = NOISE_MS**2 + max(NOISE**2, self._jitter) * expected**2
        variance = self._variance(size_bytes) + noise
        self._faster = self._faster + 1 if surprise < -math.sqrt(variance) else 0
        if surprise > SURPRISE * math.sqrt(variance) or self._faster >= STREAK:
            self._widen(surprise, size_bytes)
            variance = self._variance(size_bytes) + noise
        gain_rtt = (self._var_rtt + size_bytes * self._covariance) / variance
        gain_pace = (self._covariance + size_bytes * self._var_pace) / variance
        if surprise < 0 and self.observations:
            # The gains together move the expectation by this share of the surprise.
            share = gain_rtt + size_bytes * gain_pace
            damping = min(1.0, RECOVERY / share) if share > 0 else 1.0
            gain_rtt, gain_pace = gain_rtt * damping, gain_pace * damping
        self._rtt_ms = max(self._rtt_ms + gain_rtt * surprise, 0.5 * self._rtt_ms, LEAST_RTT_MS)
        self._pace = max(self._pace + gain_pace * surprise, 0.5 * self._pace, LEAST_PACE)
        self._shrink(gain_rtt, gain_pace, size_bytes, noise)
        off = took_ms / max(self._rtt_ms + size_bytes * self._pace, 1e-9) - 1
        self._jitter = JITTER_MEMORY * self._jitter + (1 - JITTER_MEMORY) * min(abs(off), JITTER_MOST) ** 2
        self.observations += 1

    @property
    def link(self) -> Link:
        """The goodput: losses are in the bandwidth."""
        return Link(bandwidth_mbps=8e-3 / self._pace, rtt_ms=self._rtt_ms)

    def spread_ms(self, size_bytes: float, now_s: float) -> float:
        """One standard deviation of the time that a transfer of `size_bytes` takes now: what is not known of the
        link, and its jitter."""
        expected = self._rtt_ms + size_bytes * self._pace
        drift = min(DRIFT_PER_S * self.age_s(now_s), DRIFT_MOST)
        known = self._variance(size_bytes) if self.observations else (FIRST_GUESS * expected) ** 2
        return math.sqrt(known + (drift**2 + self._jitter) * expected**2)

    def age_s(self, now_s: float) -> float:
        """Since the last observation; 0 before the first one."""
        return 0.0 if self._seen_s is None else max(0.0, now_s - self._seen_s)

    def confidence(self, now_s: float) -> float:
        """1 right after an observation, halved with every half-life of silence; 0 before the first one."""
        return 0.5 ** (self.age_s(now_s) / self.half_life_s) if self.observations else 0.0

    def wants_probe(self, now_s: float) -> bool:
        """Whether a small transfer would be worth it to know the link again."""
        return self.confidence(now_s) < 0.5

    def _age(self, now_s: float) -> None:
        drift = min(DRIFT_PER_S * self.age_s(now_s), DRIFT_MOST) ** 2
        self._var_rtt += drift * self._rtt_ms**2
        self._var_pace += drift * self._pace**2
        self._seen_s = now_s

    def _variance(self, size_bytes: float) -> float:
        both = self._var_rtt + 2 * size_bytes * self._covariance + size_bytes**2 * self._var_pace
        return max(both, 0.0)

    def _widen(self, surprise: float, size_bytes: float) -> None:
        """As unsure as the surprise says: both may be off by their share of it, and where it took longer, the pace by
        more, between its share and all of it: radio links lose bandwidth more often than they gain delay."""
        grown = abs(surprise) / max(self._rtt_ms + size_bytes * self._pace, 1e-9)
        alone = surprise / max(size_bytes, 1.0)
        self._covariance = 0.0
        self._var_rtt = max(self._var_rtt, (grown * self._rtt_ms) ** 2)
        self._var_pace = max(self._var_pace, grown * self._pace * max(alone, grown * self._pace))

    def _shrink(self, gain_rtt: float, gain_pace: float, size_bytes: float, noise: float) -> None:
        """The covariance after an update with any gain (Joseph's form), which stays positive; never surer than the
        noise of a few transfers."""
        a, b, c, d = 1 - gain_rtt, -gain_rtt * size_bytes, -gain_pace, 1 - gain_pace * size_bytes
        p, q, r = self._var_rtt, self._covariance, self._var_pace
        self._var_rtt = a * a * p + 2 * a * b * q + b * b * r + gain_rtt**2 * noise
        self._covariance = a * c * p + (a * d + b * c) * q + b * d * r + gain_rtt * gain_pace * noise
        self._var_pace = c * c * p + 2 * c * d * q + d * d * r + gain_pace**2 * noise
        self._var_rtt = max(self._var_rtt, (0.3 * NOISE * self._rtt_ms) ** 2)
        self._var_pace = max(self._var_pace, (0.3 * NOISE * self._pace) ** 2)
        most = 0.99 * math.sqrt(self._var_rtt * self._var_pace)
        self._covariance = min(max(self._covariance, -most), most)
