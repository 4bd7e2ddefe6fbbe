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
    activations. `bound_ms`: what the tier's roofline allows at best, 0 where it is not known. `share`: of the samples
    come so far, past the exits before it."""

    part: str
    tier: Tier
    latency_ms: float
    energy_mj: float = 0.0
    memory_bytes: int = 0
    bound_ms: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class RateCost:
    """A rung of a codec's ladder: bytes of a frame, points lost on top of the way's own `drop`."""

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

    `answer_bytes` come back over every link crossed. Where it `has_exit`, `local_share` of the samples leave there on
    the device, which costs `exit_ms` for each sample and `exit_bytes` of memory; `exit_drop` is what those early
    answers lose over all samples.
    """

    variant: str
    stages: tuple[StageCost, ...]
    crossings: tuple[Crossing, ...] = ()
    answer_bytes: int = 0
    drop: float = 0.0
    has_exit: bool = False
    exit_ms: float = 0.0
    local_share: float = 0.0
    exit_drop: float = 0.0
    exit_bytes: int = 0

    @property
    def is_local(self) -> bool:
        return not self.crossings

    @property
    def tiers(self) -> tuple[Tier, ...]:
        return tuple(stage.tier for stage in self.stages)


@dataclass(frozen=True)
class Power:
    """Watts of the device above idle: computing, sending or receiving, and waiting for an answer."""

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
    """What is minimised: a weighted sum of ms, mJ and bytes; the default is latency alone."""

    latency: float = 1.0
    energy: float = 0.0
    bytes: float = 0.0

    def cost(self, plan: Plan) -> float:
        return self.latency * plan.latency_ms + self.energy * plan.energy_mj + self.bytes * plan.bytes_sent


def path(hop: Hop, links: Links) -> tuple[Link, ...]:
    """The links that a crossing of `hop` takes, one after the other; none within a tier. Raises KeyError where one is
    not given."""
    if hop[0] == hop[1]:
        return ()
    if hop in links or hop != ("device", "cloud"):
        return (links[hop],)
    return links[("device", "edge")], links[("edge", "cloud")]


def evaluate(way: Way, rates: Sequence[int], links: Links, power: Power | None = None) -> Plan:
    """What `way` at `rates` (one index a crossing) is expected to cost. Raises KeyError for a link that is not given,
    IndexError for a rate that the ladder lacks, and ValueError for more or fewer rates than crossings."""
    return Costing(way, links, power).plan(rates)


class Costing:
    """A way under links, with all that does not depend on the rates summed up once."""

    def __init__(self, way: Way, links: Links, power: Power | None = None) -> None:
        """Raises KeyError for a link that is not given."""
        self.way, self._power, self._share = way, power, 1 - way.local_share
        device = [stage for stage in way.stages if stage.tier == "device"]
        self._device_ms = way.exit_ms + sum(stage.share * stage.latency_ms for stage in device)
        self._remote_ms = sum(stage.latency_ms for stage in way.stages if stage.tier != "device")
        self._energy_mj = sum(stage.share * stage.energy_mj for stage in device)
        self._memory_bytes = way.exit_bytes + sum(stage.memory_bytes for stage in device)
        self._answer_ms = self._answer_radio_ms = 0.0
        self._paths = [path(crossing.hop, links) for crossing in way.crossings]
        self._leaves = [crossing.hop[0] == "device" for crossing in way.crossings]
        for crossing, taken, leaves in zip(way.crossings, self._paths, self._leaves, strict=True):
            self._answer_ms += sum(link.one_way_ms(way.answer_bytes) for link in taken)
            self._remote_ms += crossing.decode_ms
            if leaves:
                self._device_ms += crossing.encode_ms
                self._energy_mj += 0.0 if power is None else crossing.encode_ms * power.compute_w
                self._answer_radio_ms += taken[0].transfer_ms(way.answer_bytes)
            else:
                self._remote_ms += crossing.encode_ms
        if power is not None:
            self._energy_mj += way.exit_ms * power.compute_w

    def plan(self, rates: Sequence[int]) -> Plan:
        """Raises IndexError for a rate that the ladder lacks, ValueError for a wrong number of rates."""
        way, share, sent = self.way, self._share, 0.0
        network_ms, radio_ms = self._answer_ms, self._answer_radio_ms
        drop, agreement = way.drop + way.exit_drop, None
        for crossing, index, taken, leaves in zip(way.crossings, rates, self._paths, self._leaves, strict=True):
            if index < 0:
                raise IndexError(f"rate {index} of {crossing.codec}, allowed 0 to {len(crossing.rates) - 1}")
            rate = crossing.rates[index]
            drop += rate.drop
            if len(way.crossings) == 1 and not way.local_share:
                agreement = rate.agreement  # what several codecs, or an exit, leave together was not measured
            for link in taken:
                network_ms += link.one_way_ms(rate.size_bytes)
            if leaves:
                sent += rate.size_bytes
                radio_ms += taken[0].transfer_ms(rate.size_bytes)
        energy_mj = self._energy_mj
        if self._power is not None:
            waited_ms = self._remote_ms + network_ms - radio_ms
            energy_mj += share * (radio_ms * self._power.radio_w + waited_ms * self._power.idle_w)
        return Plan(
            variant=way.variant,
            rates=tuple(rates),
            latency_ms=self._device_ms + share * (self._remote_ms + network_ms),
            compute_ms=self._device_ms + share * self._remote_ms,
            network_ms=share * network_ms,
            energy_mj=energy_mj,
            bytes_sent=share * sent,
            drop=drop,
            memory_bytes=self._memory_bytes,
            tiers=way.tiers,
            agreement=agreement,
        )
