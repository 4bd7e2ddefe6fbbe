"""Every policy on every trace: latencies side by side, and the regret of each against the oracle."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import PlanError, UnknownNameError
from edgekit.planning.adaptive import Adaptive
from edgekit.planning.plan import Links, PlanLimits, Power, Way
from edgekit.planning.policies import (
    Fixed,
    Neurosurgeon,
    Oracle,
    choices,
    is_cascade,
    is_offload,
    is_split,
    is_three_tier,
    raw_ways,
    within,
)
from edgekit.planning.replan import Replanner
from edgekit.planning.simulate import Policy, Run, Workload, fastest_local, simulate
from edgekit.planning.traces import Trace
from edgekit.planning.world import Choice

POLICIES = ("local", "offload", "offload-jpeg", "neurosurgeon", "split", "cascade", "three-tier", "edgekit", "oracle")
# What one kind of plan can do alone; the others choose among several or know what nobody knows.
SINGLE = ("local", "offload", "offload-jpeg", "split", "cascade", "three-tier")
CLASSES: dict[str, Callable[[Way], bool]] = {
    "offload": is_offload,
    "split": is_split,
    "cascade": is_cascade,
    "three-tier": is_three_tier,
}
# The image codec's finest rate is lossless; the others are JPEG.
FIRST_JPEG_RATE = 1


@dataclass(frozen=True)
class Setting:
    """What is compared: `ways` within `max_drop` points, under `workload`.

    `image_codecs` and `raw_bytes` (uncoded features by codec) are what the baselines of others need; without them
    these policies cannot be had.
    """

    ways: Sequence[Way]
    workload: Workload
    max_drop: float | None = None
    above: Links | None = None
    power: Power | None = None
    image_codecs: frozenset[str] = frozenset()
    raw_bytes: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Row:
    """A run in its place in the table. `regret`: mean latency over the oracle's, less 1. `admissible`: it keeps the
    accuracy limit. `planned_ms`: see `planned_ms`. `detail`: the plan of a policy that has one plan only."""

    run: Run
    regret: float
    admissible: bool
    planned_ms: float
    detail: str = ""


@dataclass(frozen=True)
class Comparison:
    """`rows[trace][policy]`; policies that the bundle has no way for are missing, and named in `missing`."""

    rows: dict[str, dict[str, Row]]
    missing: dict[str, str]

    def best_single(self, trace: str) -> str | None:
        """The admissible policy of one kind of plan that is the fastest on average, by its own answers."""
        rows = self.rows[trace]
        names = [name for name in SINGLE if name in rows and rows[name].admissible]
        return min(names, key=lambda name: rows[name].planned_ms, default=None)

    def behind_best_single(self, trace: str, policy: str = "edgekit") -> float | None:
        """How much slower than it, as a share; negative where faster."""
        best = self.best_single(trace)
        if best is None or policy not in self.rows[trace]:
            return None
        return self.rows[trace][policy].run.mean_ms / self.rows[trace][best].run.mean_ms - 1

    def overall_ms(self, policy: str) -> float | None:
        """The mean over the traces' means; None where the policy is missing on one."""
        runs = [rows[policy].run for rows in self.rows.values() if policy in rows]
        return statistics.fmean(run.mean_ms for run in runs) if len(runs) == len(self.rows) else None


def compare(setting: Setting, traces: Sequence[Trace], policies: Sequence[str] = POLICIES) -> Comparison:
    """The oracle always runs: regret needs it. Raises UnknownNameError, and PlanError where no way keeps the limit."""
    for name in policies:
        if name not in POLICIES:
            raise UnknownNameError("policy", name, POLICIES)
    bench = _Bench(setting)
    rows: dict[str, dict[str, Row]] = {}
    for trace in traces:
        ideal = bench.run(Oracle(bench.allowed), trace)
        rows[trace.name] = {}
        for name in policies:
            found = (ideal, "") if name == "oracle" else bench.best(name, trace)
            if found is None:
                continue
            run, detail = found
            admissible = within_limit(run, setting.max_drop)
            own_ms = planned_ms(run, setting.workload.deadline_ms)
            rows[trace.name][name] = Row(run, run.mean_ms / ideal.mean_ms - 1, admissible, own_ms, detail)
    missing = {name: bench.why_missing(name) for name in policies if any(name not in row for row in rows.values())}
    return Comparison(rows, missing)


def planned_ms(run: Run, deadline_ms: float) -> float:
    """The mean latency with a degraded answer counted as one at the deadline: what stood in for a plan that never
    answers is quick, and says nothing for the plan."""
    return statistics.fmean(
        max(outcome.latency_ms, deadline_ms) if outcome.degraded else outcome.latency_ms for outcome in run.outcomes
    )


def within_limit(run: Run, max_drop: float | None) -> bool:
    return all(within(outcome.choice, max_drop) for outcome in run.outcomes)


class _Bench:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.allowed = choices(setting.ways, setting.max_drop)
        if not self.allowed:
            raise PlanError(
                f"no way of the bundle keeps a drop of {setting.max_drop:g} points",
                binding="drop",
                hint="allow more with --max-drop",
            )
        self.fallback = fastest_local(setting.ways)

    def run(self, policy: Policy, trace: Trace) -> Run:
        setting = self.setting
        return simulate(
            policy, trace, setting.workload, fallback=self.fallback, above=setting.above, power=setting.power
        )

    def best(self, name: str, trace: Trace) -> tuple[Run, str] | None:
        """A policy's run; of one that has a fixed plan the best plan, chosen afterwards. None where it has none."""
        if name == "edgekit":
            return self.run(self._adaptive(), trace), ""
        if name == "neurosurgeon":
            raw = [Choice(way, (0,) * len(way.crossings)) for way in self._raw()]
            return (self.run(Neurosurgeon(raw), trace), "") if any(choice.rates for choice in raw) else None
        runs = [(self.run(Fixed(name, choice), trace), str(choice)) for choice in self._fixed(name)]
        deadline_ms = self.setting.workload.deadline_ms
        return min(runs, key=lambda found: planned_ms(found[0], deadline_ms), default=None)

    def why_missing(self, name: str) -> str:
        if name == "neurosurgeon":
            return "the bundle has no cut of the model"
        return "no way of this kind is in the bundle, or none keeps the drop limit"

    def _fixed(self, name: str) -> list[Choice]:
        if name == "local":
            local = [choice for choice in self.allowed if choice.way.is_local]
            return local or ([Choice(self.fallback)] if self.fallback is not None else [])
        if name == "offload-jpeg":
            return self._jpeg()
        return [choice for choice in self.allowed if CLASSES[name](choice.way)]

    def _jpeg(self) -> list[Choice]:
        """Within the limit where one is; else the one that loses least, marked as beyond it."""
        found = [
            Choice(way, (rate,))
            for way in self.setting.ways
            if is_offload(way) and len(way.crossings) == 1 and way.crossings[0].codec in self.setting.image_codecs
            for rate in range(FIRST_JPEG_RATE, len(way.crossings[0].rates))
        ]
        allowed = [choice for choice in found if within(choice, self.setting.max_drop)]
        return allowed or sorted(found, key=lambda choice: choice.drop)[:1]

    def _raw(self) -> list[Way]:
        return raw_ways(self.setting.ways, self.setting.raw_bytes or {})

    def _adaptive(self) -> Policy:
        setting = self.setting
        replanner = Replanner(limits=PlanLimits(drop=setting.max_drop), power=setting.power)
        return Adaptive(setting.ways, replanner, setting.workload.deadline_ms, setting.above)
