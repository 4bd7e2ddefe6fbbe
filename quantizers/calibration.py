"""What the calibration data do inside the network: gathered once a graph, read by every scheme and observer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgekit.errors import DataError, NumericsError
from edgekit.model import Model, Sample
from edgekit.progress import Progress, silent
from edgekit.quantizers.observers import BINS, Seen

SAMPLED = 16_384


@dataclass(frozen=True)
class Statistics:
    """`seen`: by node name, for every node that makes a float tensor. `samples`: how many inputs were run."""

    seen: dict[str, Seen]
    samples: int


@dataclass
class _Running:
    """Extremes over all values; a histogram over at most SAMPLED evenly spread values a sample."""

    minimum: float = float("inf")
    maximum: float = float("-inf")
    drawn: list[np.ndarray] = field(default_factory=list)

    def add(self, value: Tensor) -> None:
        low, high = torch.aminmax(value)
        # numpy's minimum and maximum carry NaN on, Python's drop it.
        self.minimum = float(np.minimum(self.minimum, float(low)))
        self.maximum = float(np.maximum(self.maximum, float(high)))
        flat = value.reshape(-1)
        # An odd stride does not fall in step with the even sizes of channels and rows.
        stride = max(1, flat.numel() // SAMPLED) | 1
        drawn = flat[::stride]
        self.drawn.append(
            torch.histc(drawn.float(), BINS, float(low), float(high)).numpy() if high > low else _all_in_one(drawn)
        )
        self.drawn[-1] = np.concatenate([self.drawn[-1], [float(low), float(high)]])

    def seen(self) -> Seen:
        """The histograms of the samples, each on its own range, poured into one."""
        counts = np.zeros(BINS)
        width = self.maximum - self.minimum
        for drawn in self.drawn:
            low, high = drawn[BINS:]
            centres = low + (high - low) * (np.arange(BINS) + 0.5) / BINS
            places = (centres - self.minimum) / width * BINS if width > 0 else np.zeros(BINS)
            counts += np.bincount(np.clip(places.astype(np.int64), 0, BINS - 1), drawn[:BINS], BINS)
        return Seen(self.minimum, self.maximum, counts)


class _Watcher(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.running: dict[str, _Running] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op in ("placeholder", "call_function") and _is_float(value) and value.numel():
            self.running.setdefault(n.name, _Running()).add(value.detach())
        return value


_known: weakref.WeakKeyDictionary[torch.nn.Module, tuple[tuple[Sample, ...], Statistics]] = weakref.WeakKeyDictionary()


def calibrate(model: Model, progress: Progress = silent) -> Statistics:
    """Runs `model.calibration` through the captured graph, one sample at a time (a captured batch size is fixed).

    Asked again for the same graph and data, it answers from memory. Raises DataError without calibration data,
    NumericsError naming the node where NaN or infinity first comes up.
    """
    if not model.calibration:
        raise DataError("calibration got no samples", hint="--calibration DIR with some hundred typical inputs")
    graph = model.graph
    if graph in _known and _known[graph][0] is model.calibration:
        return _known[graph][1]
    watcher = _Watcher(graph)
    with torch.no_grad():
        for done, sample in enumerate(model.calibration):
            watcher.run(*sample.values())
            progress("calibrate", done + 1, len(model.calibration))
    seen = {name: running.seen() for name, running in watcher.running.items() if _is_finite(name, running)}
    statistics = Statistics(seen, len(model.calibration))
    _known[graph] = (model.calibration, statistics)
    return statistics


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_finite(name: str, running: _Running) -> bool:
    """Masks of minus infinity are no activations; NaN anywhere is an error."""
    if np.isnan(running.minimum) or np.isnan(running.maximum):
        raise NumericsError(f"{name} holds NaN on calibration data", hint="check the weights and the input's scale")
    return bool(np.isfinite(running.minimum) and np.isfinite(running.maximum))


def _all_in_one(drawn: Tensor) -> np.ndarray:
    counts = np.zeros(BINS, dtype=np.float32)
    counts[0] = drawn.numel()
    return counts
