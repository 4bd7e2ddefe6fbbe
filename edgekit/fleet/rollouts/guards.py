"""What must hold for a rollout to go on: `agreement>=0.97,p95<=80ms,errors<=0.1%,p95<=1.2x`.

A limit with `x` compares with the devices that run something else in the same time, so that a slow afternoon is not
blamed on the new bundle. A share is judged by its Wilson interval (E. B. Wilson 1927, Probable Inference, JASA 22):
a guard breaks when even the favourable end of the interval is past the limit, and holds when the middle is within.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.fleet.telemetry.seen import Seen
from edgekit.report.metrics import wilson_interval

SHARES = ("agreement", "errors", "degraded", "late")
LATENCIES = ("p50", "p90", "p95", "p99")
METRICS = (*SHARES, *LATENCIES, "energy")
LEAST_REQUESTS = 20  # before a percentile says anything

_GUARD = re.compile(r"(?P<metric>[a-z0-9]+)\s*(?P<op><=|>=)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|ms|s|mJ|J|x)?")
_UNITS = {"ms": 1.0, "s": 1000.0, "mJ": 1.0, "J": 1000.0}


@dataclass(frozen=True)
class Verdict:
    """`value` nan: nothing to judge by. `holds` None: not enough to say. `samples`: requests behind it."""

    text: str
    value: float
    holds: bool | None
    samples: int


@dataclass(frozen=True)
class Guard:
    """`limit` in shares, ms or mJ, or with `relative` as a multiple of the others' value."""

    metric: str
    most: bool
    limit: float
    relative: bool
    text: str

    def judge(self, seen: Seen, others: Seen) -> Verdict:
        value, samples = _value(self.metric, seen)
        limit = self.limit * _value(self.metric, others)[0] if self.relative else self.limit
        if math.isnan(value) or math.isnan(limit):
            return Verdict(self.text, value, None, samples)
        if self.metric in SHARES:
            low, high = wilson_interval(value, samples)
            favourable = low if self.most else high
        elif samples < LEAST_REQUESTS:
            return Verdict(self.text, value, None, samples)
        else:
            favourable = value
        if self._past(favourable, limit):
            return Verdict(self.text, value, False, samples)
        return Verdict(self.text, value, None if self._past(value, limit) else True, samples)

    def _past(self, value: float, limit: float) -> bool:
        return value > limit if self.most else value < limit


def parse_guards(text: str) -> tuple[Guard, ...]:
    """Raises UsageError for a metric, a unit or a number that cannot be."""
    return tuple(_parse(word) for word in filter(None, (part.strip() for part in text.split(","))))


def _parse(word: str) -> Guard:
    match = _GUARD.fullmatch(word)
    hint = "like agreement>=0.97,p95<=80ms,errors<=0.1%,p95<=1.2x"
    if match is None:
        raise UsageError(f"guard {word!r:.80}", hint=hint)
    metric, unit, number = match["metric"], match["unit"] or "", float(match["number"])
    if metric not in METRICS:
        raise UsageError(f"guard {word!r:.80} watches {metric!r}, allowed {', '.join(METRICS)}", hint=hint)
    allowed = ("", "%", "x") if metric in SHARES else ("ms", "s", "x") if metric in LATENCIES else ("mJ", "J", "x")
    if unit not in allowed:
        told = ", ".join(one or "none" for one in allowed)
        raise UsageError(f"guard {word!r:.80} has the unit {unit or 'none'}, allowed {told}", hint=hint)
    most = match["op"] == "<="
    if most == (metric == "agreement"):
        raise UsageError(f"guard {word!r:.80} would hold what is bad", hint=hint)
    limit = number / 100 if unit == "%" else number * _UNITS.get(unit, 1.0)
    if metric in SHARES and unit != "x" and limit > 1:
        raise UsageError(f"guard {word!r:.80} asks for more than all", hint=hint)
    return Guard(metric, most, limit, unit == "x", re.sub(r"\s+", "", word))


def judge_all(guards: Sequence[Guard], seen: Seen, others: Seen) -> tuple[Verdict, ...]:
    return tuple(guard.judge(seen, others) for guard in guards)


def _value(metric: str, seen: Seen) -> tuple[float, int]:
    """The metric, and how many requests are behind it."""
    if metric == "agreement":
        return seen.agreement, seen.compared
    if metric in SHARES:
        return seen.share({"errors": seen.errors, "degraded": seen.degraded, "late": seen.late}[metric]), seen.requests
    if metric in LATENCIES:
        return seen.latency_ms(int(metric[1:]) / 100), sum(seen.latency.values())
    return seen.energy_per_answer_mj, seen.metered
