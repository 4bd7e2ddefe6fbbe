"""Rows of activations, drawn from the calibration data, with each channel's extremes over all of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgekit.model import Model

ROWS, SAMPLES = 2048, 128


@dataclass(frozen=True)
class Rows:
    """values: [R, C], a row a position; low, high: [C] over all positions of the samples that were run."""

    values: Tensor
    low: Tensor
    high: Tensor


def draw_rows(model: Model, dims: Mapping[str, int], count: int = ROWS, samples: int = SAMPLES) -> dict[str, Rows]:
    """By node name: about `count` rows, evenly spread over at most `samples` of the calibration data.

    `dims`: along which dimension of each node's value its channels lie.
    """
    step = max(1, len(model.calibration) // samples)
    chosen = model.calibration[::step][:samples]
    watcher = _Watcher(model.graph, dims, math.ceil(count / len(chosen)))
    with torch.no_grad():
        for sample in chosen:
            watcher.run(*sample.values())
    return {name: Rows(torch.cat(watcher.drawn[name]), watcher.low[name], watcher.high[name]) for name in watcher.drawn}


class _Watcher(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, dims: Mapping[str, int], rows: int) -> None:
        super().__init__(graph)
        self.dims, self.rows = dims, rows
        self.drawn: dict[str, list[Tensor]] = {}
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.dims:
            channels = value.detach().movedim(self.dims[n.name], -1)
            rows = channels.reshape(-1, channels.shape[-1])
            low, high = rows.amin(0), rows.amax(0)
            self.low[n.name] = torch.minimum(low, self.low.get(n.name, low))
            self.high[n.name] = torch.maximum(high, self.high.get(n.name, high))
            self.drawn.setdefault(n.name, []).append(rows[:: max(1, len(rows) // self.rows)][: self.rows].clone())
        return value
