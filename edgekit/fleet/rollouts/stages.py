"""The steps of a rollout: servers first, then devices by shares, then the servers let go of the old bundle."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgekit.bundle.manifest import TIERS, Tier
from edgekit.fleet.protocol.rollouts import RolloutOrder

SERVERS: tuple[Tier, ...] = tuple(tier for tier in reversed(TIERS) if tier != "device")


@dataclass(frozen=True)
class Stage:
    """`devices` in the order in which they are asked. `ends` True: the servers of it let go of the old bundle.
    `judged`: whether guards have to hold in it."""

    text: str
    devices: tuple[str, ...]
    ends: bool = False
    judged: bool = True


def plan_stages(
    seed: str, order: RolloutOrder, tiers: Mapping[str, Tier], *, keeps: bool = True, why_not: str = ""
) -> tuple[Stage, ...]:
    """`tiers`: of every device of the group. Who is first is drawn by `seed`, so that it is not always the same.

    `keeps` False: the servers need not keep the old bundle, because of `why_not`. Guards are judged by what devices
    see; by what servers see only where there is no device.
    """
    heads = _shuffled(seed, (device for device, own in tiers.items() if own == "device"))
    stages: list[Stage] = []
    servers: list[str] = []
    for tier in SERVERS:
        found = _shuffled(seed, (device for device, own in tiers.items() if own == tier))
        if found:
            then = "the old bundle kept" if keeps else why_not
            text = f"{counted(len(found), 'server')} in the {tier}" if tier == "cloud" else _on_edge(len(found))
            stages.append(Stage(f"{text}{' first' if heads else ''}, {then}", tuple(found), judged=not heads))
            servers += found
    stages += _steps(order.steps, heads)
    if servers and keeps:
        stages.append(Stage("servers let go of the old bundle", tuple(servers), ends=True, judged=False))
    return tuple(stages)


def _steps(shares: Iterable[float], heads: list[str]) -> Iterable[Stage]:
    """5 % of 10 devices are one device; a share that adds nobody is no step."""
    done = 0
    for share in shares:
        upto = math.ceil(share * len(heads) - 1e-9)
        if upto > done:
            whole = f"all {len(heads):,}" if upto == len(heads) else f"{100 * share:.3g} % of {len(heads):,}"
            yield Stage(f"{whole}: {counted(upto - done, 'device', more=done > 0)}", tuple(heads[done:upto]))
            done = upto


def _on_edge(count: int) -> str:
    return f"{counted(count, 'server')} on the edge"


def counted(count: int, noun: str, *, more: bool = False) -> str:
    """1 device, 2 devices, 40 more devices."""
    return f"{count:,} {'more ' if more else ''}{noun}{'' if count == 1 else 's'}"


def _shuffled(seed: str, devices: Iterable[str]) -> list[str]:
    return sorted(devices, key=lambda device: hashlib.sha256(f"{seed} {device}".encode()).digest())
