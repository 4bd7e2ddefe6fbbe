"""A Way (how the bundle can be run, with its costs) under Links becomes a Plan (what is run, and what to expect)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.bundle.manifest import Tier
from edgekit.planning.link import Link

# device -> edge, edge -> cloud; a Way that skips the edge crosses both unless a link of its own is given.
Hop = tuple[Tier, Tier]
Links = Mapping[Hop, Link]


@dataclass(frozen=True)
class StageCost:
    """One part on its tier, one sample: `latency_ms` and, on the device, `energy_mj`. `memory_bytes` of weights and
    activations."""

    part: str
    tier: Tier
    latency_ms: float
    energy_mj: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class RateCost:
    """A rung of a codec's ladder: bytes of a frame, points lost against the float model."""

    size_bytes: float
    drop: float
    agreement: float | None = None


@dataclass(frozen=True)
class Crossing:
    """A codec's way over one link: encode, send at one of `rates` (finest first), decode."""

    codec: str
    hop: Hop
    rates: tuple[RateCost, ...]
    encode_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True)
class Way:
    """A variant with its costs: stages in order, and a crossing before each stage that is not on the device.

    `answer_bytes` come back over every link crossed. `local_share` of the samples leave at the exit on the device,
    which costs `exit_ms` for each sample; `exit_drop` is what those early answers lose over all samples.
    """

    variant: str
    stages: tuple[StageCost, ...]
    crossings: tuple[Crossing, ...] = ()
    answer_bytes: int = 0
    drop: float = 0.0
    exit_ms: float = 0.0
    local_share: float = 0.0
    exit_drop: float = 0.0

    @property
    def is_local(self) -> bool:
        return not self.crossings

    @property
    def tiers(self) -> tuple[Tier, ...]:
        return tuple(stage.tier for stage in self.stages)


@dataclass(frozen=True)
class Power:
    """Watts of the device: computing, sending or receiving, and waiting for an answer (above idle: marginal)."""

    compute_w: float
    radio_w: float
    idle_w: float


@dataclass(frozen=True)
class Plan:
    """What is run: a variant, one rate index a crossing, and what to expect of it on average.

    `latency_ms` is the sum of `compute_ms` (all tiers, codecs included) and `network_ms`; `energy_mj` is the device's
    own. `bytes_sent` leave the device. `drop` in points.
    """

    variant: str
    rates: tuple[int, ...]
    latency_ms: float
    compute_ms: float
    network_ms: float
    energy_mj: float
    bytes_sent: float
    drop: float
    memory_bytes: int
    tiers: tuple[Tier, ...]
    agreement: float | None = None


@dataclass(frozen=True)
class PlanLimits:
    """None: no such limit. `memory_bytes` counts the device's parts."""

    latency_ms: float | None = None
    energy_mj: float | None = None
    bytes_sent: float | None = None
    drop: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Objective:
    """What is minimised: a weighted sum; the default is latency alone."""

    latency: float = 1.0
    energy: float = 0.0
    bytes: float = 0.0

    def cost(self, plan: Plan) -> float:
        return self.latency * plan.latency_ms + self.energy * plan.energy_mj + self.bytes * plan.bytes_sent


def evaluate(way: Way, rates: Sequence[int], links: Links, power: Power | None = None) -> Plan:
    """What `way` at `rates` (one index a crossing) is expected to cost. Raises KeyError for a link that is not given
    and IndexError for a rate that the ladder lacks."""
    remote_ms, network_ms, drop, agreement = 0.0, 0.0, way.drop, None
    device_ms = sum(stage.latency_ms for stage in way.stages if stage.tier == "device") + way.exit_ms
    energy = sum(stage.energy_mj for stage in way.stages if stage.tier == "device")
    sent = radio_ms = 0.0
    for crossing, index in zip(way.crossings, rates, strict=True):
        rate = crossing.rates[index]
        link = links[crossing.hop]
        up, down = link.one_way_ms(rate.size_bytes), link.one_way_ms(way.answer_bytes)
        network_ms += up + down
        remote_ms += crossing.decode_ms
        drop += rate.drop
        agreement = rate.agreement
        if crossing.hop[0] == "device":
            device_ms += crossing.encode_ms
            sent += rate.size_bytes
            radio_ms += up + down - link.rtt_ms
        else:
            remote_ms += crossing.encode_ms
    remote_ms += sum(stage.latency_ms for stage in way.stages if stage.tier != "device")
    share = 1 - way.local_share
    waited_ms = share * (remote_ms + network_ms - radio_ms)
    if power is not None:
        energy += way.exit_ms * power.compute_w + share * radio_ms * power.radio_w + waited_ms * power.idle_w
    return Plan(
        variant=way.variant,
        rates=tuple(rates),
        latency_ms=device_ms + share * (remote_ms + network_ms),
        compute_ms=device_ms + share * remote_ms,
        network_ms=share * network_ms,
        energy_mj=energy,
        bytes_sent=share * sent,
        drop=drop + way.exit_drop,
        memory_bytes=sum(stage.memory_bytes for stage in way.stages if stage.tier == "device"),
        tiers=way.tiers,
        agreement=agreement,
    )
