"""Solve, verify, repair: the additive model proposes, real artifacts answer, and the model learns from each answer.

Anytime: the best verified configuration so far is always at hand. Every measurement is kept in `state`, so that a
search that was interrupted goes on with the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from edgekit.costs import peak_activation_bytes
from edgekit.quantizers.quantize import FLOAT
from edgekit.search.corners import HOPELESS, KNOBS, TRIES, alone, optimistic, turns
from edgekit.search.expectation import Expectation
from edgekit.search.front import nondominated
from edgekit.search.knobs import Knobs
from edgekit.search.limits import SearchLimits
from edgekit.search.measuring import measure
from edgekit.search.outcome import Found, Outcome, Proposal, refusal
from edgekit.search.solve import best_path, front
from edgekit.search.space import Configuration, Family
from edgekit.search.state import State
from edgekit.search.verify import Made, Verified, Verifier

Goal = Literal["quality", "latency", "size"]
# Of the time, for measuring what each knob costs; the rest is for building and judging.
MEASURING = 0.5
FRONT_POINTS = 7
# How many times the allowed drop the front goes on to.
FRONT_DROPS = 4
# Of the front, how many points the search still verifies once nothing better than the best is expected.
FRONT_VERIFIED = 6
# A configuration is worth building where it is expected to be better by this share of the figure that counts.
WORTH = 1e-3
# Of a limit, as much as the first attempts may fill: the model may be wrong.
ROOM = 0.8
# Where a few attempts met no limits, the next has to be expected less than this share beyond them, and nearer to them
# than all before by this factor.
FAR, NEARER = 0.25, 0.75
# Families that are asked for a proposal in every round.
PROMISING = 4
AXIS = {"quality": "error", "latency": "latency_ms", "size": "size_bytes"}


class Search:
    def __init__(
        self,
        knobs: Knobs,
        verifier: Verifier,
        state: State,
        families: Sequence[Family],
        limits: SearchLimits,
        goal: Goal,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.knobs, self.verifier, self.state = knobs, verifier, state
        self.limits, self.goal, self.budget_s, self.clock = limits, goal, budget_s, clock
        self.families = tuple(families)
        self.made: dict[Configuration, Made] = {}
        self.verified: dict[Configuration, Verified] = {
            one.configuration: one for one in map(Verified.from_json, state.under("verified/"))
        }
        self._promise: dict[Family, float] = {}
        self._leading: tuple[Family, ...] = ()
        # Knobs that had nothing to offer alone: asking all families again takes a solver's time in every round.
        self._idle: set[str] = set()

    def run(self) -> Outcome:
        """Raises PlanError, naming the nearest and holding all that was found, where nothing that was built meets the
        limits."""
        start = self.clock()
        deadline = start + self.budget_s
        self.measure(start + self.budget_s * MEASURING)
        complete = False
        longest = 0.0
        while True:
            self.model.repair(self._all)
            proposal = self._next()
            complete = proposal is None
            # What cannot be ended in time is not begun; one is always built.
            if proposal is None or (self.verified and self.clock() + longest > deadline):
                break
            began = self.clock()
            self._verify(proposal)
            longest = max(longest, self.clock() - began)
        found = Found(
            verified=self._all,
            front=tuple(nondominated(self._built())),
            expected=tuple(self._expected_front()),
            limits=self.limits,
            seconds=self.clock() - start,
            complete=complete,
        )
        best = self._best()
        if best is None:
            raise refusal(self.knobs.workshop.original.name, found)
        return Outcome(**vars(found), chosen=best)

    def measure(self, deadline: float) -> None:
        """What each knob costs, as far as the time goes."""
        tables = measure(self.families, self.knobs, deadline, self.clock, for_size=self.limits.by_size)
        peak = peak_activation_bytes(self.knobs.workshop.prepared()[0])
        self.model = Expectation(self.knobs.workshop.device, self.limits, tables, peak)

    @property
    def _all(self) -> tuple[Verified, ...]:
        return tuple(self.verified.values())

    def _next(self) -> Proposal | None:
        """What to build next: before anything meets the limits, what surely does; then the best that is expected to,
        where it may beat the best so far; with that known, the widest open place of the front."""
        best = self._best()
        if best is None:
            return self._surest() or self._nearest()
        corner = self._corner()
        if corner is not None:
            return corner
        first = min(self._proposals(self.model.bounds()), key=self._worth, default=None)
        if first is not None and self._worth(first) < self._value(best) * (1 - WORTH) - 1e-12:
            return first
        open_points = [one for one in self._expected_front() if one.configuration not in self.verified]
        if not open_points or len(self._built()) >= 3 * FRONT_VERIFIED:
            return None
        known = [one.latency_ms for one in self._built()]
        return max(
            open_points, key=lambda one: min((abs(one.figures["latency_ms"] - other) for other in known), default=0.0)
        )

    def _corner(self) -> Proposal | None:
        """The best that turns one knob alone, of a knob that was not tried so yet and is not hopeless."""
        bounds = self.model.bounds()
        bounds.pop("error", None)
        most = HOPELESS * self.limits.drop if self.limits.drop is not None else math.inf
        for knob in KNOBS:
            if knob in self._idle:
                continue
            tried = [one for one in self.verified.values() if self._turned(one.configuration) == knob]
            if len(tried) >= TRIES or any(not one.failed and not self.limits.broken(one.figures()) for one in tried):
                continue
            found = []
            for family, lattice in self.model.lattices.items():
                part = None if self._fails(family) else alone(family, lattice, knob)
                if part is None:
                    continue
                multipliers = optimistic(self.model.multipliers, part)
                solved = best_path(part, multipliers, AXIS[self.goal], self.model.eased(family, bounds, self._all))
                if solved is not None:
                    found.append(self.model.proposal(family, solved))
            fitting = [one for one in found if self._turned(one.configuration) == knob and one.figures["drop"] <= most]
            proposal = min(fitting, key=self._worth, default=None)
            if proposal is not None and proposal.configuration not in self.verified:
                return proposal
            self._idle.add(knob)
        return None

    def _turned(self, configuration: Configuration) -> str:
        tables = self.model.tables.get(configuration.family)
        return turns(configuration, tables.widths.whole if tables is not None and tables.widths is not None else None)

    def _surest(self) -> Proposal | None:
        """Of what is expected to meet all limits, with room where that can be, what fills the fullest of them least."""
        bounds = self.model.bounds()
        with_room = {name: ROOM * limit for name, limit in bounds.items()}
        found = self._proposals(with_room, "error") or self._proposals(bounds, "error")
        return min(found, key=lambda one: self.limits.fullness(one.figures), default=None)

    def _nearest(self) -> Proposal | None:
        """Where nothing is expected to meet all limits: what comes nearest to one of them within the others. The model
        may be wrong, and if it is not the nearest is to be named; far beyond the limits a few attempts do."""
        bounds = self.model.bounds()
        found = [
            proposal
            for name in bounds
            for proposal in self._proposals({other: bounds[other] for other in bounds if other != name}, name)
        ]
        nearest = min(found, key=lambda one: self.limits.excess(one.figures), default=None)
        if nearest is not None and len(self._built()) > FRONT_VERIFIED:
            expected = self.limits.excess(nearest.figures)
            if expected > min(FAR, NEARER * min(self.limits.excess(one.figures()) for one in self._built())):
                return None
        return nearest

    def _proposals(self, bounds: Mapping[str, float], minimize: str | None = None) -> list[Proposal]:
        """The best of each family that was not built yet; of the families that looked best the last time alone, once
        all were looked at."""
        families = [family for family in self.model.lattices if not self._fails(family)]
        ranked = sorted(families, key=lambda family: self._promise.get(family, -1.0))
        asked = ranked if minimize or not all(family in self._promise for family in ranked) else ranked[:PROMISING]
        found = self._ask(asked, bounds, minimize or AXIS[self.goal])
        if not found and len(asked) < len(ranked):
            found = self._ask(ranked, bounds, minimize or AXIS[self.goal])
        return found

    def _ask(self, families: Sequence[Family], bounds: Mapping[str, float], minimize: str) -> list[Proposal]:
        found = []
        for family in families:
            known = self.model.known(family, self._all)
            eased = self.model.eased(family, bounds, self._all)
            solved = best_path(self.model.lattices[family], self.model.multipliers, minimize, eased, known)
            self._promise[family] = float("inf")
            if solved is not None:
                proposal = self.model.proposal(family, solved)
                self._promise[family] = self._worth(proposal)
                if proposal.configuration not in self.verified:
                    found.append(proposal)
        return found

    def _fails(self, family: Family) -> bool:
        """Whether its format and precision were tried more than once, and nothing came of it."""
        tried = [
            one
            for one in self.verified.values()
            if (one.configuration.family.format, one.configuration.family.precision)
            == (family.format, family.precision)
        ]
        return len(tried) > 1 and all(one.failed for one in tried)

    def _expected_front(self) -> list[Proposal]:
        """Over the families that had a place on it the first time; what loses a multiple of what is allowed is left
        out."""
        bounds = {}
        if self.limits.drop is not None:
            most = self.model.curve.largest(FRONT_DROPS * self.limits.drop)
            bounds = {"error": most} if most < math.inf else {}
        found = [
            self.model.proposal(family, solved)
            for family in self._leading or self.model.lattices
            for solved in front(self.model.lattices[family], self.model.multipliers, bounds, FRONT_POINTS)
        ]
        kept = nondominated(found)
        self._leading = self._leading or tuple(dict.fromkeys(one.configuration.family for one in kept))
        return kept

    def _worth(self, proposal: Proposal) -> float:
        return {"quality": proposal.error, **proposal.figures}[
            {"quality": "quality", "latency": "latency_ms", "size": "size_bytes"}[self.goal]
        ]

    def _value(self, one: Verified) -> float:
        return {"quality": self.model.effective(one), "latency": one.latency_ms, "size": one.size_bytes}[self.goal]

    def _verify(self, proposal: Proposal) -> None:
        expected = {**proposal.figures, "error": proposal.error}
        twin = Configuration(Family(proposal.configuration.family.format, FLOAT))
        if twin not in self.verified and twin.family in self.model.lattices:
            # It is built in any case, to time the others against.
            self._keep(self.verifier.verify(twin, {}))
        if proposal.configuration not in self.verified:
            self._keep(self.verifier.verify(proposal.configuration, expected))

    def _keep(self, made: Made) -> None:
        configuration = made.verified.configuration
        self.made[configuration] = made
        self.verified[configuration] = made.verified
        self.state.put(f"verified/{configuration}", made.verified.to_json())
        best = self._best()
        kept = {one.configuration for one in nondominated(self._built())} | ({best.configuration} if best else set())
        self.made = {one: made for one, made in self.made.items() if one in kept}

    def _built(self) -> list[Verified]:
        return [one for one in self.verified.values() if not one.failed]

    def _best(self) -> Verified | None:
        """Of those within the limits."""
        fitting = [one for one in self._built() if not self.limits.broken(one.figures())]
        return min(fitting, key=self._rank, default=None)

    def _rank(self, one: Verified) -> tuple[float, float, float]:
        if self.goal == "quality":
            return one.drop, one.latency_ms, one.size_bytes
        if self.goal == "size":
            return one.size_bytes, one.drop, one.latency_ms
        return one.latency_ms, one.drop, one.size_bytes
