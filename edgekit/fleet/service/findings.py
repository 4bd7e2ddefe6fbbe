"""Suspects and drift as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekit.fleet.protocol.insights import Finding
from edgekit.fleet.telemetry.drift import Drift
from edgekit.fleet.telemetry.histogram import upper_bound
from edgekit.fleet.telemetry.peers import TRAIT, Suspect, Trait

if TYPE_CHECKING:
    from edgekit.fleet.service.memory import Memory

WORDS = {
    "p50": "its median latency is {value}, its {peers} peers' {usual}",
    "p95": "its p95 latency is {value}, its {peers} peers' {usual}",
    "errors": "{value} of its requests fail, {usual} of those of its {peers} peers",
    "degraded": "{value} of its answers are degraded, {usual} of those of its {peers} peers",
    "agreement": "{value} of its answers agree with the full model, {usual} of those of its {peers} peers",
    "temperature": "it has {value}, its {peers} peers {usual}",
    "rtt": "its round trip takes {value}, its {peers} peers' {usual}",
    "bandwidth": "its link gives {value}, its {peers} peers' {usual}",
    "loss": "its link loses {value}, its {peers} peers' {usual}",
}
CHANGED = {"inputs": "its inputs", "confidence": "how sure its answers are"}


def suspect_finding(one: Suspect, name: str, digest: str, now: float) -> Finding:
    trait = TRAIT[one.trait]
    told = {"value": _figure(trait, one.value), "usual": _figure(trait, one.usual), "peers": str(one.peers)}
    return Finding(
        device=one.device,
        name=name,
        kind="suspect",
        metric=one.trait,
        unit=trait.unit,
        digest=digest,
        value=one.value,
        usual=one.usual,
        spread=one.spread,
        score=min(one.score, 1e6),
        peers=one.peers,
        samples=round(one.samples),
        since=now,
        at=now,
        text=WORDS[one.trait].format(**told),
    )


def drift_finding(one: Drift, device: str, name: str, digest: str, metric: str, memory: Memory, now: float) -> Finding:
    worst = max(range(len(one.now)), key=lambda at: abs(one.now[at] - one.before[at]))
    where = _bin(one.edges, worst)
    shares = f"{100 * one.now[worst]:.0f} % of them {where}, {100 * one.before[worst]:.0f} % at first"
    return Finding(
        device=device,
        name=name,
        kind="drift",
        metric=metric,
        digest=digest,
        value=one.index,
        usual=one.limit,
        score=one.index / one.limit,
        samples=round(memory.recent.heard_s),
        distance=one.distance,
        before=one.before,
        now=one.now,
        edges=tuple(upper_bound(edge) for edge in one.edges),
        since=now,
        at=now,
        text=f"{CHANGED[metric]} changed: {shares} (index {one.index:.2f}, drift from {one.limit:.2f})",
    )


def _bin(edges: tuple[int, ...], at: int) -> str:
    if at == 0:
        return f"up to {upper_bound(edges[0]):.3g}"
    if at == len(edges):
        return f"above {upper_bound(edges[-1]):.3g}"
    return f"between {upper_bound(edges[at - 1]):.3g} and {upper_bound(edges[at]):.3g}"


def _figure(trait: Trait, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.3g} %" if trait.unit == "%" else f"{value:.3g} {trait.unit}"
