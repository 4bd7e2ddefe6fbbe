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
# Slower by more deviations than this is believed at once.
SURPRISE = 2.0
# This many transfers in a row that are faster than expected are no luck.
STREAK = 3
JITTER_MEMORY = 0.85
JITTER_MOST = 0.3
HALF_LIFE_S = 1.0
LEAST_RTT_MS = 0.02
LEAST_PACE = 1e-7
# An answer is usual, or overdue, within or beyond so many deviations.
USUAL = 3.0
LEAST_PATIENCE_MS = 10.0
# An answer to this share of the bytes says that the link carries all of them.
ALIKE = 0.5
# While nothing comes back, a probe is worth it after so long, then twice as long, ...
PROBE_FIRST_S, PROBE_LONGEST_S = 0.25, 1.0
# A link of which less is known than so many transfers tell is asked again soon.
FEW, PROBE_SOON_S = 4, 0.1
# A probe is what the link carries in so long, within bounds: enough to tell pace from delay, little to pay.
PROBE_MS, PROBE_BYTES = 20.0, (512, 8192)
# Without any news a link does not count as down for longer.
DOWN_LONGEST_S = 5.0


@dataclass(frozen=True)
class _Belief:
    """What an estimate held before answers failed to come."""

    rtt_ms: float
    pace: float
    var_rtt: float
    var_pace: float
    covariance: float
    jitter: float
    seen_s: float | None

    def usual_ms(self, size_bytes: float) -> float:
        """What an answer takes at most where nothing has changed."""
        expected = self.rtt_ms + size_bytes * self.pace
        variance = self.var_rtt + 2 * size_bytes * self.covariance + size_bytes**2 * self.var_pace
        known = math.sqrt(max(variance, 0.0) + self.jitter * expected**2)
        return expected + max(LEAST_PATIENCE_MS, USUAL * known, DRIFT_MOST * expected)


@dataclass
class LinkEstimate:
    """Round-trip time and pace (ms a byte) by a Kalman filter over `took = rtt + bytes x pace`.

    Transfers of different sizes tell the two apart; transfers of one size move whichever weighs more in them. Much
    slower than expected is believed at once, much faster only when it comes again: a plan that relies on a link that
    is gone costs a deadline, one that misses a link that came back costs a little time.

    An answer that does not come may mean a slower link or none for a while. Both are believed: the estimate gets
    slower, and what was held before is kept. An answer as fast as it used to be brings that back at once. One that is
    late waited for the outage to end and tells nothing but that: it calls for a probe, which decides.
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
        self._before: _Belief | None = None
        self._proven_bytes = math.inf
        self._doubted_s = self._probed_s = -math.inf
        self._first_late_s: float | None = None
        self._probes, self._probe_now = 0, False
        self._faster = self.observations = 0

    def observe(self, size_bytes: float, took_ms: float, now_s: float, *, unfinished: bool = False) -> None:
        """A transfer of `size_bytes` (both ways together) was answered after `took_ms`, computing left out.

        `unfinished`: it has taken so long and is not answered; counts only where that is more than expected. Raises
        UsageError for a negative size or time.
        """
        if not (size_bytes >= 0 and took_ms >= 0 and math.isfinite(took_ms + size_bytes)):
            raise UsageError(f"a transfer of {size_bytes} bytes in {took_ms} ms, allowed from 0")
        if not unfinished:
            if self._before is not None and self._only_tells_the_end(size_bytes, took_ms, now_s):
                return
            self._proven_bytes = max(self._proven_bytes, size_bytes)
        self._age(now_s)
        expected = self._rtt_ms + size_bytes * self._pace
        surprise = took_ms - expected
        if unfinished:
            if surprise <= 0:
                return
            self._doubt(size_bytes, now_s)
        noise = NOISE_MS**2 + max(NOISE**2, self._jitter) * expected**2
        variance = self._variance(size_bytes) + noise
        # Twice as fast as expected: the next probe, a larger one, may find it faster still.
        self._probe_now = not unfinished and took_ms < 0.5 * expected
        self._faster = self._faster + 1 if surprise < -math.sqrt(variance) else 0
        if surprise > SURPRISE * math.sqrt(variance) or self._faster >= STREAK:
            self._widen(surprise, size_bytes)
            variance = self._variance(size_bytes) + noise
        gain_rtt = (self._var_rtt + size_bytes * self._covariance) / variance
        gain_pace = (self._covariance + size_bytes * self._var_pace) / variance
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

    def overdue_ms(self, size_bytes: float, now_s: float) -> float:
        """After so long without an answer to a transfer of `size_bytes` something is wrong."""
        expected = self._rtt_ms + size_bytes * self._pace
        return expected + max(LEAST_PATIENCE_MS, USUAL * self.spread_ms(size_bytes, now_s))

    def confidence(self, now_s: float) -> float:
        """1 right after an observation, halved with every half-life of silence; 0 before the first one."""
        return 0.5 ** (self.age_s(now_s) / self.half_life_s) if self.observations else 0.0

    def is_down(self, now_s: float) -> bool:
        """An answer did not come a short while ago, and none has come since that tells what it meant."""
        return self._before is not None and now_s < self._doubted_s + DOWN_LONGEST_S

    @property
    def probe_bytes(self) -> int:
        """How large the next probe should be."""
        carries = int(PROBE_MS * 1e3 / 8 * self.link.bandwidth_mbps)
        return max(PROBE_BYTES[0], min(PROBE_BYTES[1], carries))

    def wants_probe(self, now_s: float) -> bool:
        """Whether a small transfer would be worth it to know the link again."""
        return now_s >= self.probe_at_s

    @property
    def probe_at_s(self) -> float:
        """When the next small transfer is worth it, unless something is heard before."""
        if self._probe_now:
            return -math.inf
        if self._before is not None:
            return max(self._doubted_s, self._probed_s) + min(PROBE_LONGEST_S, PROBE_FIRST_S * 2.0**self._probes)
        if self._seen_s is None:
            return self._probed_s + PROBE_LONGEST_S
        silence_s = self.half_life_s if self.observations >= FEW else min(PROBE_SOON_S, self.half_life_s)
        return max(self._seen_s, self._probed_s) + silence_s

    def probing(self, now_s: float) -> None:
        """A probe is on its way; tell `observe` what becomes of it."""
        self._probed_s, self._probe_now = now_s, False
        self._probes += 1

    def _doubt(self, size_bytes: float, now_s: float) -> None:
        """An answer did not come: for a while none may, or the link is too slow for as many bytes. The latter where no
        answer to nearly as many has come since the time before."""
        self._doubted_s = now_s
        if self._before is None and ALIKE * size_bytes <= self._proven_bytes:
            figures = (self._rtt_ms, self._pace, self._var_rtt, self._var_pace, self._covariance, self._jitter)
            self._before = _Belief(*figures, self._seen_s)
            self._first_late_s, self._probes = None, 0

    def _only_tells_the_end(self, size_bytes: float, took_ms: float, now_s: float) -> bool:
        """After answers that did not come: what one that comes means."""
        before = self._before
        assert before is not None
        if took_ms <= before.usual_ms(size_bytes):
            self._rtt_ms, self._pace = before.rtt_ms, before.pace
            self._var_rtt, self._var_pace, self._covariance = before.var_rtt, before.var_pace, before.covariance
            self._jitter, self._seen_s = before.jitter, before.seen_s
            self._proven_bytes = size_bytes
        elif self._first_late_s is None or now_s - took_ms / 1e3 < self._first_late_s:
            # It was on its way in the outage. The first such answer is the news that the outage is over.
            self._probe_now = self._probe_now or self._first_late_s is None
            self._first_late_s = now_s if self._first_late_s is None else self._first_late_s
            return True
        self._before = None
        return False

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
