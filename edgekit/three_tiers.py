"""Three tiers: the tail cut once more, its upper part in the cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgekit.bundle.manifest import Variant
from edgekit.devices.device import Device
from edgekit.model import Sample
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.passes.bottleneck.transform import TransformCoding
from edgekit.passes.partition.candidates import cuts as candidate_cuts
from edgekit.passes.partition.split import split
from edgekit.passes.partition.stages import Cut
from edgekit.selection import Packed
from edgekit.split_outcome import SplitOutcome
from edgekit.tier_bench import TierBench, codec_entry, slug_of


def three_tiers(tiers: TierBench, slug: str, squeezed: Squeezed, edge: Device, cloud: Device) -> SplitOutcome:
    """Middle on the edge and top in the cloud above the head of `squeezed`; the second codec is training-free.

    That codec's ladder is measured on undistorted features: what it loses comes on top of the first one's loss. The
    report leaves it out: its rows are about what leaves the device.
    """
    inner = _balanced(candidate_cuts(squeezed.tail))
    if inner is None:
        return SplitOutcome(notes=(f"cut {slug}: the tail has no place for a second cut",))
    name = tiers.whole.model.name
    second = _renamed(TransformCoding().insert(*split(squeezed.tail, [inner]), progress=tiers.whole.progress), "upper_")
    upper = f"{slug}-{slug_of(inner.name)}"
    middle_model = second.head.evolve_quietly(name=f"{name}-middle-{upper}", postprocess=None)
    middle = tiers.on_server(middle_model, edge)
    top = tiers.on_server(second.tail.evolve_quietly(name=f"{name}-top-{upper}"), cloud)
    codec = codec_entry(f"feature-{upper}", second.kind, second.tables, middle_model.output_specs, second.rates)
    ladder = tiers.ladder(tiers.features(middle, middle_model.held_out), codec, second.tables, top)
    parts = (f"head-{slug}", f"middle-{upper}", f"top-{upper}")
    return SplitOutcome(
        packed=(Packed(parts[1], middle, "edge"), Packed(parts[2], top, "cloud")),
        codecs=(ladder.of(codec),),
        tables={codec.tables: second.tables} if codec.tables and second.tables is not None else {},
        variants=(Variant(name=f"three-tier-{upper}", parts=parts, codecs=(f"feature-{slug}", codec.name)),),
    )


def _renamed(squeezed: Squeezed, prefix: str) -> Squeezed:
    """What crosses gets names of its own: a stage's inputs and outputs may not share any."""
    head, tail = squeezed.head, squeezed.tail

    def rename(sample: Sample) -> Sample:
        return {prefix + name: value for name, value in sample.items()}

    return replace(
        squeezed,
        head=head.evolve_quietly(output_names=tuple(prefix + name for name in head.output_names)),
        tail=tail.evolve_quietly(
            example_inputs=rename(tail.example_inputs),
            calibration=tuple(map(rename, tail.calibration)),
            held_out=tuple(map(rename, tail.held_out)),
            dynamic={prefix + name: dims for name, dims in tail.dynamic.items()},
        ),
    )


def _balanced(cuts: Sequence[Cut]) -> Cut | None:
    """The cut with the fewest values to send of those in the middle half of the work."""
    if not cuts:
        return None
    total = max(cut.head_flops for cut in cuts)
    middle = [cut for cut in cuts if 0.25 * total <= cut.head_flops <= 0.75 * total]
    return min(middle or cuts, key=lambda cut: cut.size_bytes)
