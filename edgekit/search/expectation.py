"""What the additive model expects of a configuration, repaired by every artifact that was built and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.devices.device import Device
from edgekit.devices.energy import energy
from edgekit.quantizers.quantize import FLOAT
from edgekit.search.families import DEPTH, WIDTH, Tables, configuration_of, lattice_of, path_of
from edgekit.search.lattice import Arc, Lattice, Path
from edgekit.search.limits import SearchLimits
from edgekit.search.model import Curve, fit_multipliers, joint_curve
from edgekit.search.outcome import Proposal
from edgekit.search.solve import Solved
from edgekit.search.space import Configuration, Family
from edgekit.search.tables import Measured
from edgekit.search.verify import Verified

# What several knobs together, measured on calibration samples, count beside a verified artifact.
KNOB_WEIGHT = 0.1
# How far from a limit on the latency, relative, a built recipe tells of those at the limit, and how many of them do.
NEAR, LATEST = 0.1, 3
# How far the points lost may bring an error from what its energy says.
APART = 5.0
# Where rounding makes less than this share of a path's error, the groups in float beside it change nothing.
SLIGHT = 0.1


@dataclass
class Expectation:
    """`peak_bytes`: of the activations. `lattices` by family, `multipliers` by kind, `curve`: points lost over error
    energy."""

    device: Device
    limits: SearchLimits
    tables: Mapping[Family, Tables]
    peak_bytes: float
    multipliers: dict[str, float] = field(default_factory=dict)
    curve: Curve = field(default_factory=lambda: Curve((0.0,), (0.0,)))
    lattices: dict[Family, Lattice] = field(init=False)

    def __post_init__(self) -> None:
        self.lattices = {family: lattice_of(family, tables, 0.0) for family, tables in self.tables.items()}

    def repair(self, verified: Sequence[Verified]) -> None:
        """Multipliers, fixed bytes and the curve anew from everything that was measured."""
        errors: list[tuple[Mapping[str, float], float, float]] = []
        times: list[tuple[Mapping[str, float], float, float]] = []
        weights: dict[str, list[float]] = {}
        seen: list[tuple[float, float]] = []
        built: list[tuple[Verified, Lattice, Path]] = []
        # Families share tables: each measurement counts once.
        probes: set[Measured] = set()
        together: set[tuple[str, float, Measured]] = set()
        for family, tables in self.tables.items():
            if tables.precision is not None:
                whole, summed = tables.precision.whole, sum(tables.precision.errors.values())
                probes.add(whole)
                together |= {(family.precision, summed, whole)} if summed > 0 else set()
            for table in (tables.tokens, tables.widths):
                probes.update(table.probes if table is not None else ())
            if tables.tokens is not None:
                together.update((family.method, total, one) for total, one in tables.tokens.together)
            if tables.widths is not None:
                together.update((WIDTH, total, one) for total, one in tables.widths.together)
                together.update((DEPTH, total, one) for total, one in tables.widths.shallow)
        errors += [({kind: total}, one.error, KNOB_WEIGHT) for kind, total, one in sorted(together, key=repr)]
        for one in verified:
            lattice, path = self.path(one.configuration)
            if lattice is None or path is None or one.failed:
                continue
            rest = {lattice.fixed_kind: lattice.fixed[1]}
            built.append((one, lattice, path))
            times.append((_added(path.latencies_ms(), rest), one.latency_ms, 1.0))
            held = sum(arc.size_bytes for arc in path.arcs)
            weights.setdefault(one.configuration.family.format, []).append(one.size_bytes - held)
            if one.configuration.family.precision != FLOAT or one.configuration.keep or one.configuration.shape:
                seen.append((one.error, one.drop))
        self.curve = joint_curve([(one.error, one.drop) for one in probes], seen)
        for one, lattice, path in built:
            errors.append((path.errors(), self.effective(one) - lattice.fixed[0], 1.0))
        self.multipliers = {
            **fit_multipliers(*_columns(errors)),
            **fit_multipliers(*_columns(times)),
        }
        for family, lattice in self.lattices.items():
            beside = weights.get(family.format, [0.0])
            error, latency, _ = lattice.fixed
            self.lattices[family] = replace(lattice, fixed=(error, latency, max(0.0, sum(beside) / len(beside))))

    def effective(self, one: Verified) -> float:
        """The error energy that costs as many points as `one` lost: a missing block costs less than its energy says, a
        rounded layer more. As far as its judged samples tell: their interval against what was lost."""
        if one.drop <= 0 or one.error <= 0:
            return one.error
        trust = 1 / (1 + ((one.high - one.low) / 2 / one.drop) ** 2)
        worth = min(max(self.curve.largest(one.drop), one.error / APART), one.error * APART)
        return float(one.error ** (1 - trust) * worth**trust)

    def bounds(self) -> dict[str, float]:
        """The limits on the figures that the solver adds up."""
        limits, found = self.limits, {}
        watts = energy(1.0, self.device)
        latencies = [limits.latency_ms] if limits.latency_ms is not None else []
        if limits.energy_mj is not None and watts is not None:
            latencies.append(limits.energy_mj / watts.total_mj)
        if latencies:
            found["latency_ms"] = min(latencies)
        sizes = [limits.size_bytes] if limits.size_bytes is not None else []
        if limits.memory_bytes is not None:
            sizes.append(max(0.0, limits.memory_bytes - self.peak_bytes))
        if sizes:
            found["size_bytes"] = min(sizes)
        if limits.drop is not None:
            found["error"] = self.curve.largest(limits.drop)
        return {name: limit for name, limit in found.items() if limit < float("inf")}

    def eased(self, family: Family, bounds: Mapping[str, float], verified: Sequence[Verified]) -> dict[str, float]:
        """`bounds`, on the latency by as much tighter as the last that were built in this format and precision near
        the limit took longer than the repaired model says: what is expected at the limit should meet it."""
        if "latency_ms" not in bounds:
            return dict(bounds)
        most, ratios = bounds["latency_ms"], [1.0]
        for one in verified:
            other = one.configuration.family
            lattice, path = self.path(one.configuration)
            near = not one.failed and abs(one.latency_ms / most - 1) < NEAR
            if not near or (other.format, other.precision) != (family.format, family.precision):
                continue
            if lattice is not None and path is not None:
                kinds = _added(path.latencies_ms(), {lattice.fixed_kind: lattice.fixed[1]})
                expected = sum(value * self.multipliers.get(kind, 1.0) for kind, value in kinds.items())
                ratios.append(one.latency_ms / expected)
        return {**bounds, "latency_ms": most / max(1.0, *ratios[-LATEST:])}

    def known(self, family: Family, verified: Sequence[Verified]) -> list[tuple[frozenset[Arc], ...]]:
        """By step, the arcs that make up what was built of `family`: another group in float is the same recipe where
        rounding loses next to nothing and the limit on the latency was met."""
        steps = self.lattices[family].steps
        found = []
        rounded = f"{family.format} {family.precision}"
        if family.precision != FLOAT and any(arc.kinds[1] == rounded for step in steps for arc in step.arcs):
            # All of it in float is another family's.
            found.append(tuple(frozenset(arc for arc in step.arcs if arc.kinds[1] != rounded) for step in steps))
        for one in verified:
            path = self.path(one.configuration)[1] if one.configuration.family == family else None
            if path is None:
                continue
            same = self._hardly_rounds(path, family) and "latency_ms" not in self.limits.broken(one.figures())
            found.append(
                tuple(
                    frozenset(other for other in step.arcs if _leaves(other) == _leaves(arc))
                    if same
                    else frozenset((arc,))
                    for step, arc in zip(steps, path.arcs, strict=True)
                )
            )
        return found

    def _hardly_rounds(self, path: Path, family: Family) -> bool:
        parts = {kind: value * self.multipliers.get(kind, 1.0) for kind, value in path.errors().items()}
        return family.precision != FLOAT and parts.get(family.precision, 0.0) < SLIGHT * sum(parts.values())

    def path(self, configuration: Configuration) -> tuple[Lattice | None, Path | None]:
        lattice = self.lattices.get(configuration.family)
        if lattice is None:
            return None, None
        return lattice, path_of(lattice, configuration, self.tables[configuration.family])

    def proposal(self, family: Family, solved: Solved) -> Proposal:
        error, latency, size = solved.figures
        spent = energy(latency, self.device)
        figures = {
            "drop": self.curve(error),
            "latency_ms": latency,
            "size_bytes": size,
            "memory_bytes": size + self.peak_bytes,
            **({} if spent is None else {"energy_mj": spent.total_mj}),
        }
        return Proposal(
            configuration_of(family, self.lattices[family], solved.path, self.tables[family]), figures, error
        )


def _leaves(arc: Arc) -> tuple[int, int, str]:
    """What an arc leaves of tokens, heads and units, whatever it is computed in."""
    return arc.source, arc.target, arc.choice.partition("|")[2]


def _added(terms: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {kind: terms.get(kind, 0.0) + more.get(kind, 0.0) for kind in {*terms, *more}}


def _columns(
    rows: Sequence[tuple[Mapping[str, float], float, float]],
) -> tuple[list[Mapping[str, float]], list[float], list[float]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
