"""Which parts of a bundle a load meets on its way up, one a tier, and what crosses before and behind them."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.bundle.manifest import Manifest, Part, Tier, Variant
from edgekit.capacity.replica import tensor_bytes
from edgekit.errors import PlanError, UnknownNameError

REMOTE: tuple[Tier, ...] = ("edge", "cloud")


@dataclass(frozen=True)
class Stop:
    """`part` on `tier`; bytes of a request to it and of its answer, frames at the codec's finest rate."""

    tier: Tier
    part: Part
    up_bytes: float
    down_bytes: float


def stops(manifest: Manifest, variant: str | None = None, tier: Tier | None = None) -> list[Stop]:
    """Those of `variant`, without one those of the first that leaves the device; `tier` keeps one of them.

    A bundle that was made for a device alone is served whole, on `tier` or the edge. Raises UnknownNameError for the
    variant, PlanError where it has nothing on the tier.
    """
    known = {entry.name: entry for entry in manifest.variants}
    if variant is not None and variant not in known:
        raise UnknownNameError("variant", variant, known)
    chosen = known[variant] if variant is not None else _first_remote(manifest)
    found = _remote_stops(manifest, chosen)
    if not found and len(chosen.parts) == 1 and variant is None:
        part = manifest.part(chosen.parts[0])
        found = [Stop(tier or "edge", part, tensor_bytes(part.inputs), tensor_bytes(part.outputs))]
    if tier is not None:
        found = [stop for stop in found if stop.tier == tier]
    if not found:
        offered = [entry.name for entry in manifest.variants if _remote_stops(manifest, entry)]
        raise PlanError(
            f"the variant {chosen.name!r} runs nothing on {tier or 'a server'}",
            hint=f"--variant {' or '.join(offered)}" if offered else "export it with --edge or --cloud",
        )
    return found


def _first_remote(manifest: Manifest) -> Variant:
    return next((entry for entry in manifest.variants if _remote_stops(manifest, entry)), manifest.variants[0])


def _remote_stops(manifest: Manifest, variant: Variant) -> list[Stop]:
    remote = [manifest.part(name) for name in variant.parts if manifest.part(name).tier != "device"]
    return [
        Stop(part.tier, part, manifest.codec(codec).rates[0].bytes_mean, tensor_bytes(part.outputs))
        for part, codec in zip(remote, variant.codecs, strict=True)
    ]
