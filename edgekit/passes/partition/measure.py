"""What the sides of a cut cost here, timed in their own runtime: fused kernels are not a sum of layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgekit.devices.device import Device
from edgekit.model import Model
from edgekit.passes.partition.split import split
from edgekit.passes.partition.stages import Cut
from edgekit.registry import EXPORTERS
from edgekit.runtimes.session import Session, SessionOptions

WARM_RUNS = 3
TIMED_RUNS = 20


def measure_cuts(
    model: Model, cuts: Sequence[Cut], folder: Path, device: Device, threads: int = 1, format: str = "onnx"
) -> dict[str, tuple[float, float]]:
    """(head, tail) medians in ms for the example input, by the cut's name, in float on this machine.

    All parts take turns, so that a machine which slows down slows all of them. `device` only says what the files may
    hold. Raises what the exporter and the runtime raise.
    """
    exporter = EXPORTERS.load(format)()
    bare = model.evolve_quietly(calibration=(), held_out=(), labels=())
    parts: list[tuple[Session, dict[str, np.ndarray]]] = []
    with ExitStack() as stack:
        for index, cut in enumerate(cuts):
            for stage in split(bare, [cut]):
                place = folder / f"cut{index}"
                place.mkdir(parents=True, exist_ok=True)
                artifact = exporter.export(stage, place, device)
                session = stack.enter_context(artifact.open(stage, SessionOptions(threads=threads)))
                parts.append((session, {name: value.numpy() for name, value in stage.example_inputs.items()}))
        times = [statistics.median(laps) for laps in _laps(parts)]
    return {cut.name: (times[2 * index], times[2 * index + 1]) for index, cut in enumerate(cuts)}


def _laps(parts: Sequence[tuple[Session, dict[str, np.ndarray]]]) -> list[list[float]]:
    laps: list[list[float]] = [[] for _ in parts]
    for turn in range(WARM_RUNS + TIMED_RUNS):
        for index, (session, feeds) in enumerate(parts):
            start = time.perf_counter()
            session.run(feeds)
            if turn >= WARM_RUNS:
                laps[index].append(1e3 * (time.perf_counter() - start))
    return laps
