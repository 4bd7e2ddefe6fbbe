"""What must hold for a rollout to go on: `agreement>=0.97,p95<=80ms,errors<=0.1%,p95<=1.2x`.

A limit with `x` compares with the devices that run something else in the same time, so that a slow afternoon is not
blamed on the new bundle.

A guard breaks only where even the favourable end of an interval is past the limit: Wilson's for shares (E. B. Wilson
1927, Probable Inference, JASA 22), that of order statistics for percentiles (W. J. Conover, Practical Nonparametric
Statistics, section 3.2). Guards are judged again and again while a step soaks; the intervals are three standard
deviations wide, so that many looks together seldom break what holds; and as latencies come in buckets, a limit in ms
is broken by what lies in a bucket beyond it. A guard holds when the value itself is within and
`least_samples` are behind it. Golden answers are counted, not sampled: they have no interval.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import UsageError
from edgekit.fleet.telemetry.histogram import HALF, percentile, percentile_interval
from edgekit.fleet.telemetry.seen import Seen
from edgekit.report.metrics import wilson_interval

SHARES = ("agreement", "errors", "degraded", "late")
LATENCIES = ("p50", "p90", "p95", "p99")
UNITS: dict[str, dict[str, float]] = {
    "share": {"": 1.0, "%": 0.01, "x": 1.0},
    "latency": {"": 1.0, "ms": 1.0, "s": 1000.0, "x": 1.0},
    "energy": {"": 1.0, "mJ": 1.0, "J": 1000.0, "x": 1.0},
    "temperature": {"": 1.0, "C": 1.0},
}
KINDS = {
    **dict.fromkeys(SHARES, "share"),
    **dict.fromkeys(LATENCIES, "latency"),
    "golden": "share",
    "energy": "energy",
    "temperature": "temperature",
}
METRICS = tuple(KINDS)
GOOD_IS_MORE = ("agreement", "golden")

Z = 3.0  # of the intervals: one look in 740 breaks a guard whose truth is at the limit
LEAST_REQUESTS = 20  # before a share or a percentile says anything
MOST_REQUESTS = 200  # that a share is made to wait for
LEAST_WINDOWS = 3  # of temperature
HOT = 0.95  # the percentile over windows that a temperature is judged by

_GUARD = re.compile(r"(?P<metric>[a-z0-9]+)\s*(?P<op><=|>=)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|ms|s|mJ|J|C|x)?")
EXAMPLE = "like agreement>=0.97,p95<=80ms,errors<=0.1%,p95<=1.2x"


@dataclass(frozen=True)
class Verdict:
    """`value` nan: nothing to judge by. `holds` None: not enough to say, `why` says what is missing. `samples`:
    requests behind it (windows for a temperature, golden inputs for `golden`)."""

    text: str
    value: float
    holds: bool | None
    samples: int
    why: str = ""


@dataclass(frozen=True)
class Figure:
    """A metric as seen: `low` to `high` is where its truth may be. `least` samples before it counts."""

    value: float
    low: float
    high: float
    samples: int
    least: int


@dataclass(frozen=True)
class Guard:
    """`limit` in shares, ms, mJ or degrees Celsius, or with `relative` as a multiple of the others' value."""

    metric: str
    most: bool
    limit: float
    relative: bool
    text: str

    def judge(self, seen: Seen, others: Seen) -> Verdict:
        own = figure(self.metric, seen, self.least_samples)
        limit = strict = self.limit
        if self.relative:
            theirs = figure(self.metric, others, LEAST_REQUESTS)
            if math.isnan(theirs.value) or theirs.samples < theirs.least:
                why = f"{theirs.samples} samples of devices to compare with, wanted {theirs.least}"
                return Verdict(self.text, own.value, None, own.samples, why)
            limit, strict = self.limit * theirs.value, self.limit * (theirs.high if self.most else theirs.low)
        if math.isnan(own.value) or own.samples < own.least:
            return Verdict(self.text, own.value, None, own.samples, f"{own.samples} samples, wanted {own.least}")
        in_bucket = self.metric in LATENCIES and not self.relative
        if self._past(own.low / (HALF if in_bucket else 1.0) if self.most else own.high, strict):
            return Verdict(self.text, own.value, False, own.samples)
        if in_bucket and own.value / HALF <= limit < own.value:
            return Verdict(self.text, own.value, None, own.samples, "too near to the limit for its histogram to tell")
        if self._past(own.value, limit):
            return Verdict(self.text, own.value, None, own.samples, "past the limit, but perhaps by chance")
        return Verdict(self.text, own.value, True, own.samples)

    @property
    def least_samples(self) -> int:
        """A share waits until one bad answer among them would be no more than the limit allows, within reason."""
        if self.metric == "golden":
            return 1
        if self.metric == "temperature":
            return LEAST_WINDOWS
        if KINDS[self.metric] != "share" or self.relative:
            rare = 1 - int(self.metric[1:]) / 100 if self.metric in LATENCIES else 1.0
            return max(LEAST_REQUESTS, math.ceil(1 / rare - 1e-9))
        bad = self.limit if self.most else 1 - self.limit
        return MOST_REQUESTS if bad * MOST_REQUESTS <= 1 else max(LEAST_REQUESTS, math.ceil(1 / bad - 1e-9))

    def _past(self, value: float, limit: float) -> bool:
        return value > limit if self.most else value < limit


def parse_guards(text: str) -> tuple[Guard, ...]:
    """Raises UsageError for a metric, a unit or a number that cannot be, and for a guard that is given twice."""
    guards = tuple(_parse(word) for word in filter(None, (part.strip() for part in text.split(","))))
    known: set[tuple[str, bool]] = set()
    for guard in guards:
        if (guard.metric, guard.relative) in known:
            raise UsageError(f"guard {guard.text!r:.80} watches {guard.metric} a second time", hint="keep one of them")
        known.add((guard.metric, guard.relative))
    return guards


def _parse(word: str) -> Guard:
    match = _GUARD.fullmatch(word)
    if match is None:
        raise UsageError(f"guard {word!r:.80}", hint=EXAMPLE)
    metric, unit, number = match["metric"], match["unit"] or "", float(match["number"])
    if metric not in METRICS:
        raise UsageError(f"guard {word!r:.80} watches {metric!r}, allowed {', '.join(METRICS)}", hint=EXAMPLE)
    allowed = dict(UNITS[KINDS[metric]])
    if metric == "golden":
        del allowed["x"]  # golden answers are the same for all: there is nothing to compare with
    if unit not in allowed:
        told = ", ".join(one or "none" for one in allowed)
        raise UsageError(f"guard {word!r:.80} has the unit {unit or 'none'}, allowed {told}", hint=EXAMPLE)
    most = match["op"] == "<="
    if most == (metric in GOOD_IS_MORE):
        raise UsageError(f"guard {word!r:.80} would hold what is bad", hint=EXAMPLE)
    limit, relative = number * allowed[unit], unit == "x"
    if KINDS[metric] == "share" and not relative and limit > 1:
        raise UsageError(f"guard {word!r:.80} asks for more than all", hint=EXAMPLE)
    return Guard(metric, most, limit, relative, re.sub(r"\s+", "", word))


def figure(metric: str, seen: Seen, least: int) -> Figure:
    """`metric` one of METRICS; its value is nan where nothing was seen."""
    if metric == "golden":
        value = seen.right / seen.checked if seen.checked else math.nan
        return Figure(value, value, value, seen.checked, least)
    if metric == "temperature":
        ranked = sorted(seen.temperatures)
        value = ranked[math.ceil(HOT * len(ranked)) - 1] if ranked else math.nan
        return Figure(value, value, value, len(ranked), least)
    if metric == "energy":
        value = seen.energy_per_answer_mj
        return Figure(value, value, value, seen.metered, least)
    if metric in LATENCIES:
        share, samples = int(metric[1:]) / 100, sum(seen.latency.values())
        low, high = percentile_interval(seen.latency, share, Z)
        return Figure(percentile(seen.latency, share), low, high, samples, least)
    counts = {"errors": seen.errors, "degraded": seen.degraded, "late": seen.late}
    value, samples = (
        (seen.agreement, seen.compared) if metric == "agreement" else (seen.share(counts[metric]), seen.requests)
    )
    low, high = wilson_interval(value, samples, Z) if samples else (0.0, 1.0)
    return Figure(value, low, high, samples, least)


UNIT_OF: dict[str, Literal["%", "ms", "mJ", "C"]] = {
    "share": "%",
    "latency": "ms",
    "energy": "mJ",
    "temperature": "C",
}


def shown(metric: str, value: float) -> str:
    """`value` of `metric` for people: 97.3 %, 81 ms."""
    if math.isnan(value):
        return "-"
    unit = UNIT_OF[KINDS[metric]]
    return f"{100 * value:.3g} %" if unit == "%" else f"{value:.3g} {unit}"
