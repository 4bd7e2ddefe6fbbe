"""Energy of one inference, from the power in the profile and the time it takes."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.devices.device import Device, covers


@dataclass(frozen=True)
class Energy:
    """`total_mj`: the whole board at load. `above_idle_mj`: what this inference adds, None without an idle figure.

    `estimated`: always an estimate by power x time; True marks that the power itself has no measured source either.
    """

    total_mj: float
    above_idle_mj: float | None
    load_w: float
    estimated: bool


def energy(latency_ms: float, device: Device) -> Energy | None:
    """W x ms = mJ. None for a profile without a load figure. `latency_ms` is for every core of the unit at work."""
    load = device.power_w.get("load")
    if load is None:
        return None
    idle = device.power_w.get("idle")
    return Energy(
        total_mj=load * latency_ms,
        above_idle_mj=None if idle is None else (load - idle) * latency_ms,
        load_w=load,
        estimated=covers(device.estimated, "power_w.load"),
    )
