"""The model before it was pruned, beside the pruned one: what pruning gained, and whether it gained anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.candidates import Bench, time_in_turns
from edgekit.costs import segments
from edgekit.devices.device import Device
from edgekit.devices.latency import predict
from edgekit.errors import EdgekitError
from edgekit.exporters.base import Exporter
from edgekit.model import Model
from edgekit.parity import Limits
from edgekit.quantizers.quantize import FLOAT
from edgekit.selection import HOST_UNIT, Built, Candidate

NO_LIMITS = Limits(None, None)
# What pruning has to gain, in latency, to be worth what it loses.
WORTH = 0.97


def build_whole(bench: Bench, whole: Model, winner: Built, exporter: Exporter) -> tuple[Built, ...]:
    """`whole` in the winner's format, in float and in the winner's precision. They are timed, never packed: what is
    learned layer by layer changes no time, and is left out."""
    beside = Bench(
        model=whole,
        device=bench.device,
        limits=NO_LIMITS,
        options=replace(bench.options, learned_rounding=False, bias_correction=False),
        folder=bench.folder / "whole",
        threads=bench.threads,
        progress=lambda step, done, total: bench.progress(f"whole model, {step}", done, total),
    )
    beside.folder.mkdir(exist_ok=True)
    candidates = dict.fromkeys(Candidate(winner.candidate.format, name) for name in (FLOAT, winner.candidate.precision))
    return tuple(beside.build(candidate, exporter) for candidate in candidates)


def told(whole: Sequence[Built], winner: Built) -> str:
    """A note where the pruned artifact is no faster here than the whole model in its precision, else ""."""
    same = next((one for one in whole if one.candidate.precision == winner.candidate.precision), None)
    if same is None or same.host_ms is None or winner.host_ms is None or winner.host_ms < same.host_ms:
        return ""
    predicted = ""
    if same.device is not None and winner.device is not None:
        predicted = f" ({winner.device.latency_ms:.3g} against {same.device.latency_ms:.3g} ms predicted on the device)"
    return (
        f"pruning does not pay here: {winner.candidate} takes {winner.host_ms:.3g} ms, and the whole model "
        f"{same.host_ms:.3g}{predicted}"
    )


def decline(whole: Model, pruned: Model, exporter: Exporter, device: Device, threads: int, folder: Path) -> str:
    """Why auto leaves `whole` as it is, where `pruned` is no faster in float: by what is predicted for the device, and
    where the same kind of unit runs it by the geometric mean of that and of what this machine measures, in turns.
    Empty where it is, and where one of the two cannot be exported, which its candidate tells better. Both are captured.
    """
    predicted = [predict(segments(model, FLOAT), device, exporter.format).latency_ms for model in (whole, pruned)]
    try:
        measured = _time_both(whole, pruned, exporter, device, threads, folder)
    except EdgekitError:
        return ""
    ratio = predicted[1] / predicted[0]
    if device.unit_for(exporter.format).name == HOST_UNIT:
        ratio = math.sqrt(ratio * measured[1] / measured[0])
    if ratio <= WORTH:
        return ""
    return (
        f"auto pruned no heads or tokens, for no time is gained: in float {measured[1]:.3g} against "
        f"{measured[0]:.3g} ms here, {predicted[1]:.3g} against {predicted[0]:.3g} ms predicted for {device.title}"
    )


def _time_both(
    whole: Model, pruned: Model, exporter: Exporter, device: Device, threads: int, folder: Path
) -> list[float]:
    pairs = []
    for name, model in (("whole", whole), ("pruned", pruned)):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        pairs.append((exporter.export(model, place, device), model))
    return time_in_turns(pairs, threads)
