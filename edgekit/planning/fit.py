"""The plan that loses least within a budget, or spends least while the battery is low: changed with hysteresis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgekit.errors import PlanError
from edgekit.planning.choose import WORDS, exceeded, refusal
from edgekit.planning.plan import Plan, PlanLimits

Why = Literal["first", "kept", "budget", "better", "battery"]


@dataclass(frozen=True)
class Fitted:
    """`plan`; `why` it is taken: first; kept; budget: the one before does not fit any more; better: one that loses less
    has fitted long enough; battery: what is spent counts now, or quality does again. `note` for the user: what would
    have lost less, and why it was not taken. `fits` is False where nothing meets the limits: `plan` is the nearest."""

    plan: Plan
    why: Why
    note: str = ""
    fits: bool = True


@dataclass
class Fitter:
    """Takes over a plan that loses less only once it has fitted with `margin` to spare (a share of each limit) for
    `patience` decisions in a row; leaves one at once that does not fit."""

    margin: float = 0.1
    patience: int = 3
    _current: tuple[str, tuple[int, ...]] | None = field(default=None, init=False)
    _saving: bool = field(default=False, init=False)
    _wins: int = field(default=0, init=False)

    def decide(self, plans: Sequence[Plan], limits: PlanLimits, *, saving: bool = False) -> Fitted:
        """Raises PlanError where there is no plan at all."""
        if not plans:
            raise PlanError("no way can run", binding="links", hint="give --edge or --cloud, or export a local variant")
        allowed = [plan for plan in plans if not any(exceeded(plan, limits))]
        if not allowed:
            self._current, self._wins = None, 0
            nearest = min(plans, key=lambda plan: (_excess(plan, limits), plan.drop))
            return Fitted(
                nearest, "budget", f"{refusal(plans, limits).message}; {nearest.variant} is the nearest", False
            )
        best = min(allowed, key=lambda plan: _order(plan, saving))
        present = next((plan for plan in allowed if (plan.variant, plan.rates) == self._current), None)
        if present is not None and saving == self._saving:
            roomy = [plan for plan in plans if not any(exceeded(plan, _tightened(limits, self.margin)))]
            rival = min(roomy, key=lambda plan: _order(plan, saving), default=present)
            self._wins = self._wins + 1 if self._beats(rival, present, saving) else 0
            if self._wins < self.patience:
                return Fitted(present, "kept", _note(present, plans, limits, saving))
            return self._take(rival, "better", plans, limits, saving)
        if self._current is None:
            why: Why = "first"
        elif saving != self._saving:
            why = "battery"
        else:
            why = "budget"
        return self._take(best, why, plans, limits, saving)

    def _beats(self, rival: Plan, present: Plan, saving: bool) -> bool:
        if not saving:
            return rival.drop < present.drop
        spent, now = ((plan.energy_mj or plan.compute_ms) for plan in (rival, present))
        return spent < (1 - self.margin) * now

    def _take(self, plan: Plan, why: Why, plans: Sequence[Plan], limits: PlanLimits, saving: bool) -> Fitted:
        self._current, self._saving, self._wins = (plan.variant, plan.rates), saving, 0
        return Fitted(plan, why, _note(plan, plans, limits, saving))


def _order(plan: Plan, saving: bool) -> tuple[float, ...]:
    """What is least of the plan to take. Without a power model the time that is computed stands for energy."""
    if saving:
        return (plan.energy_mj, plan.compute_ms, plan.drop)
    return (plan.drop, plan.latency_ms, plan.energy_mj)


def _tightened(limits: PlanLimits, margin: float) -> PlanLimits:
    """What is to take over must not only just fit; the drop is a property of the variant and does not waver."""
    tighter = {
        name: (1 - margin) * value
        for name in ("latency_ms", "energy_mj", "bytes_sent")
        if (value := getattr(limits, name)) is not None
    }
    return replace(limits, **tighter)


def _excess(plan: Plan, limits: PlanLimits) -> float:
    """By how much the worst limit is missed, in parts of it."""
    return max((getattr(plan, name) / max(getattr(limits, name), 1e-9) for name in exceeded(plan, limits)), default=0.0)


def _note(plan: Plan, plans: Sequence[Plan], limits: PlanLimits, saving: bool) -> str:
    """Empty where nothing would have lost less."""
    best = min(plans, key=lambda other: (other.drop, other.latency_ms))
    if best.drop >= plan.drop:
        return ""
    if saving:
        return f"{plan.variant} instead of {best.variant}: the battery is low"
    broken = next(exceeded(best, limits), None)
    if broken == "latency_ms" and limits.latency_ms is not None:
        return (
            f"{plan.variant} instead of {best.variant}, which would take {best.latency_ms:.3g} ms of "
            f"{limits.latency_ms:.3g} allowed"
        )
    why = WORDS[broken] if broken else "it has only just come to fit again"
    return f"{plan.variant} instead of {best.variant}: {why}"
