"""A bundle's variants as Ways: what each part costs on its tier, predicted from its segments or measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest

from edgekit.bundle.manifest import Codec, Exit, Manifest, Part, Tier, Variant
from edgekit.devices.device import Device, load_device
from edgekit.devices.energy import energy
from edgekit.devices.latency import bandwidth_gbps, peak_gflops, predict
from edgekit.errors import PlanError
from edgekit.planning.plan import Crossing, Power, RateCost, StageCost, Way
from edgekit.tensors import DTYPES

# An LTE radio that sends or receives: its base power of 1288 mW (Huang et al., MobiSys 2012, table 4). A profile that
# states power_w.radio, or power_w.wait for a radio that stays awake until the answer, overrides it.
RADIO_W = 1.288

# Quantizing and entropy coding in numpy: about 1 ms for 30,000 components at 2 GHz, and what any call costs.
CODEC_CYCLES = 65.0
CODEC_CALL_MS = 0.05


def ways(
    manifest: Manifest,
    device: Device,
    servers: Mapping[Tier, Device] | None = None,
    measured: Mapping[str, float] | None = None,
    threads: Mapping[Tier, int] | None = None,
) -> tuple[Way, ...]:
    """One Way a variant, in the manifest's order.

    `servers`: profiles of edge and cloud; a tier without one takes the manifest's. `measured`: ms by part name, and
    by `encode:CODEC` and `decode:CODEC`; they win over predictions. `threads` by tier, every core without.

    Raises PlanError for a part that has neither costs nor a measurement or a tier without a profile, and DeviceError
    for a format that the tier cannot run.
    """
    prices = Prices(manifest, {"device": device, **(servers or {})}, measured or {}, threads or {})
    return tuple(prices.way(variant) for variant in manifest.variants)


def power_of(device: Device) -> Power | None:
    """Above idle, as `edgekit.devices.energy` counts; None for a profile that knows no load."""
    load = device.power_w.get("load")
    if load is None:
        return None
    return Power(
        compute_w=load - device.power_w.get("idle", 0.0),
        radio_w=device.power_w.get("radio", RADIO_W),
        idle_w=device.power_w.get("wait", 0.0),
    )


def roofline_ms(part: Part, device: Device, threads: int | None = None) -> float:
    """The sum over segments of max(flops / peak, bytes / bandwidth), every kernel at efficiency 1. Raises DeviceError
    for a format that the device cannot run.

    Where the calibration knows kernels that pass the profile's nominal peak, its prediction is the lower one."""
    if not part.segments:
        return 0.0
    unit = device.unit_for(part.format)
    bandwidth = bandwidth_gbps(unit, threads)
    nominal = 1e-6 * sum(
        max(segment.flops / peak_gflops(unit, segment.precision, threads), segment.bytes_moved / bandwidth)
        for segment in part.segments
    )
    return min(nominal, predict(part.segments, device, part.format, threads).latency_ms)


@dataclass(frozen=True)
class Prices:
    """What each thing of a bundle costs on the tiers' devices."""

    manifest: Manifest
    devices: Mapping[Tier, Device]
    measured: Mapping[str, float]
    threads: Mapping[Tier, int]

    def way(self, variant: Variant) -> Way:
        parts = [self.manifest.part(name) for name in variant.parts]
        stages = self.ladder(variant) if variant.exits else [self.stage(part) for part in parts]
        crossings: list[Crossing] = []
        below: Tier = "device"
        names = iter(variant.codecs)
        for part in parts:
            if part.tier != "device":
                codec = self.manifest.codec(next(names))
                crossings.append(self.crossing(codec, below, part.tier, variant.drop))
                below = part.tier
        answer_bytes = sum(entry.spec().size_bytes for entry in parts[-1].outputs) if crossings else 0
        way = Way(variant.name, tuple(stages), tuple(crossings), answer_bytes, variant.drop)
        return way if variant.exit is None else self._with_exit(way, variant.exit)

    def ladder(self, variant: Variant) -> list[StageCost]:
        """Parts and the exits between them, each with the share of the samples that came so far."""
        stages, share = [], 1.0
        for name, exit in zip_longest(variant.parts, variant.exits):
            stages.append(replace(self.stage(self.manifest.part(name)), share=share))
            if exit is not None:
                stages.append(replace(self.stage(self.manifest.part(exit.part)), share=share))
                share -= exit.curve[0].answered if exit.curve else 0.0
        return stages

    def stage(self, part: Part) -> StageCost:
        weights = part.size_bytes + sum(file.size_bytes for file in part.companions)
        latency_ms = self.part_ms(part)
        return StageCost(
            part=part.name,
            tier=part.tier,
            latency_ms=latency_ms,
            energy_mj=self._energy_mj(latency_ms) if part.tier == "device" else 0.0,
            memory_bytes=weights + part.peak_activation_bytes,
            bound_ms=roofline_ms(part, self.on(part.tier), self.threads.get(part.tier)),
        )

    def part_ms(self, part: Part) -> float:
        if part.name in self.measured:
            return self.measured[part.name]
        if not part.segments:
            raise PlanError(
                f"part {part.name!r} states no costs and was not measured",
                hint="export the bundle again, or give the part's measured latency",
            )
        return predict(part.segments, self.on(part.tier), part.format, self.threads.get(part.tier)).latency_ms

    def crossing(self, codec: Codec, below: Tier, above: Tier, variant_drop: float) -> Crossing:
        """A rate states the variant's whole drop; the way's own is taken off, so that several crossings add up."""
        return Crossing(
            codec=codec.name,
            hop=(below, above),
            rates=tuple(
                RateCost(size_bytes=rate.bytes_mean, drop=rate.drop - variant_drop, agreement=rate.agreement)
                for rate in codec.rates
            ),
            encode_ms=self._codec_ms("encode", codec, below),
            decode_ms=self._codec_ms("decode", codec, above),
        )

    def on(self, tier: Tier) -> Device:
        """The tier's device. Raises PlanError where neither the caller nor the manifest names one."""
        if tier in self.devices:
            return self.devices[tier]
        name = None if tier == "device" else self.manifest.tiers.get(tier)
        if name is None:
            raise PlanError(f"no device profile for the tier {tier}", hint=f"name one: --{tier} x86-server")
        return load_device(name)

    def _with_exit(self, way: Way, exit: Exit) -> Way:
        """The share and the drop at the curve's point that is nearest to the exit's threshold."""
        part = self.manifest.part(exit.part)
        share = exit_drop = 0.0
        if exit.curve:
            point = min(exit.curve, key=lambda point: abs(point.threshold - exit.threshold))
            without = way.drop + sum(crossing.rates[0].drop for crossing in way.crossings)
            share, exit_drop = point.answered, point.drop - without
        return Way(
            variant=way.variant,
            stages=way.stages,
            crossings=way.crossings,
            answer_bytes=way.answer_bytes,
            drop=way.drop,
            has_exit=True,
            exit_ms=self.part_ms(part),
            local_share=share,
            exit_drop=exit_drop,
            exit_bytes=self.stage(part).memory_bytes,
        )

    def _codec_ms(self, step: str, codec: Codec, tier: Tier) -> float:
        key = f"{step}:{codec.name}"
        if key in self.measured:
            return self.measured[key]
        specs = [entry.spec() for entry in codec.features]
        components = sum(spec.size_bytes // DTYPES[spec.dtype].itemsize for spec in specs)
        clock_ghz = next((unit.clock_ghz for unit in self.on(tier).units if unit.name == "cpu"), 2.0)
        return CODEC_CALL_MS + components * CODEC_CYCLES / clock_ghz * 1e-6

    def _energy_mj(self, latency_ms: float) -> float:
        found = energy(latency_ms, self.on("device"))
        if found is None:
            return 0.0
        return found.total_mj if found.above_idle_mj is None else found.above_idle_mj
