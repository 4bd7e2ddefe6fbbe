"""Trials by successive halving, each kept as soon as it is made: an interruption costs one."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import edgekit
from edgekit.bundle.cache import cache_root
from edgekit.capacity.demand import Objective
from edgekit.capacity.sizing import nearest_above
from edgekit.devices.machine import this_machine
from edgekit.errors import PlanError
from edgekit.progress import Progress, silent
from edgekit.search.state import State
from edgekit.tuning.halving import Rung, halve, rung_sizes
from edgekit.tuning.settings import Settings
from edgekit.tuning.trial import Trial

Try = Callable[[Settings, float], Trial]


@dataclass(frozen=True)
class Tuned:
    """`best` of those that were tried longest. `trials`: of every setting the longest one, with its seconds. `usual`:
    the settings without options and their trial, as long as the best one's."""

    best: Settings
    rungs: tuple[Rung[Settings, Trial], ...]
    usual: tuple[Settings, Trial] | None = None

    @property
    def trial(self) -> Trial:
        return self.trials[self.best][1]

    @property
    def trials(self) -> Mapping[Settings, tuple[float, Trial]]:
        return {settings: (rung.seconds, trial) for rung in self.rungs for settings, trial in rung.found}

    def drift(self) -> float:
        """What the settings of the last round carried there over what they carried the round before, the median; 1 on a
        steady machine, and where there was one round."""
        if len(self.rungs) < 2:
            return 1.0
        before, last = (dict(rung.found) for rung in self.rungs[-2:])
        ratios = [trial.rate_hz / before[one].rate_hz for one, trial in last.items() if before[one].rate_hz > 0]
        return statistics.median(ratios) if ratios else 1.0


def state_path(digest: str, objective: Objective, seconds: float, seed: int) -> Path:
    """Of one bundle and objective on one kind of machine."""
    machine = this_machine()
    facts = (edgekit.__version__, digest, str(objective), seconds, seed, machine.cpu, machine.cores)
    return cache_root() / "tune" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"


def tune(
    settings: Sequence[Settings],
    objective: Objective,
    attempt: Try,
    state: State,
    seconds: float,
    progress: Progress = silent,
    usual: Settings | None = None,
) -> Tuned:
    """`attempt(settings, seconds)` for what `state` does not know yet. `usual` is tried as long as the best, to compare
    with. Raises PlanError with the nearest settings where none holds the objective."""
    total, made = sum(rung_sizes(len(settings))), 0

    def evaluate(one: Settings, each: float) -> Trial:
        nonlocal made
        progress(f"try {one}, {each:g} s", made, total)
        made += 1
        found = state.remember(f"{one!r} {each:g} s", lambda: attempt(one, each).to_json())
        return Trial.of(found)

    rungs = tuple(halve(settings, evaluate, lambda trial: trial.score, seconds))
    best, trial = rungs[-1].found[0]
    if trial.rate_hz <= 0:
        raise _refusal(rungs, objective)
    compared = None
    if usual is not None:
        compared = usual, dict(rungs[-1].found).get(usual) or evaluate(usual, rungs[-1].seconds)
    progress("tried", total, total)
    return Tuned(best, rungs, compared)


def _refusal(rungs: Sequence[Rung[Settings, Trial]], objective: Objective) -> PlanError:
    nearest, trial = min(
        (pair for rung in rungs for pair in rung.found), key=lambda pair: (pair[1].percentile_ms, pair[0])
    )
    shown = f"p{100 * objective.share:g}"
    if math.isinf(trial.percentile_ms):
        return PlanError(
            f"no settings answer {shown} of the requests at all", binding="latency", hint="does the model run here?"
        )
    return PlanError(
        f"no settings hold {objective}; the nearest ({nearest}) take {trial.percentile_ms:.3g} ms at {shown}",
        binding="latency",
        hint=f"--slo {shown}={nearest_above(trial.percentile_ms):g}ms can be met with " + " ".join(nearest.words),
    )
