"""Learned rounding: layer by layer, each weight goes to the step that keeps the layer's output, not to the nearest.

The layers are solved in the order in which they run, each against the inputs that really reach it, so that later
layers make up for the errors of earlier ones. The bias takes up what is left of the mean. Each layer is a least
squares problem in closed form, see `rounding`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.model import Sample
from edgekit.progress import Progress
from edgekit.quantization import Quantization
from edgekit.quantizers.anatomy import WeightedLayer, layer_weight, replace_tensor, tensor_named, weighted_layer
from edgekit.quantizers.grids import on_grid, quantize_weight
from edgekit.quantizers.lockstep import Values, walk
from edgekit.quantizers.patches import patches, rows_of, rows_to_weight
from edgekit.quantizers.rounding import Moments, compensated_rows, damped_metric, round_rows

# Found on EfficientNet-Lite0 with 30 crops: smaller values fit the calibration data and lose on other pictures.
DAMPING = 1.0
RIDGE = 10.0


@dataclass
class LearnedRounding:
    """Solves every layer of `record` into `graph`, in place; `exact` is the float graph with the same node names.

    `cache_dir`: one .npz a finished layer, named by a digest of all that led to it, so that an interrupted run goes
    on where it stopped and a changed one starts anew.
    """

    exact: GraphModule
    graph: GraphModule
    record: Quantization
    samples: tuple[Sample, ...]
    progress: Progress
    cache_dir: Path | None = None
    learn: bool = True

    def run(self) -> None:
        self._digest = hashlib.sha256(
            repr((self.record.scheme, self.learn, sorted(self.record.activations.items()))).encode()
        )
        for sample in self.samples:
            for value in sample.values():
                self._digest.update(value.numpy().tobytes())
        total, self._done = len(self.record.weights), 0
        self._total = total
        for _ in walk(self.exact, self.graph, self.record, self.samples, before=self._visit):
            if self._done == total:
                break

    def _visit(self, node: Node, exact: Values, rounded: Values) -> None:
        layer = weighted_layer(node)
        if layer is None or layer.weight not in self.record.weights:
            return
        weight = layer_weight(self.graph, layer)
        bias = tensor_named(self.graph, str(layer.bias_node.target)) if layer.bias_node is not None else None
        self._digest.update(weight.detach().numpy().tobytes())
        if bias is not None:
            self._digest.update(bias.detach().numpy().tobytes())
        known = self._recall(node.name)
        solved, shifted = known if known is not None else self._solve(layer, weight, bias, exact, rounded)
        if known is None:
            self._remember(node.name, solved, shifted)
        replace_tensor(self.graph, layer.weight, solved)
        if layer.bias_node is not None and shifted is not None:
            replace_tensor(self.graph, str(layer.bias_node.target), shifted)
        self._done += 1
        self.progress("learn rounding", self._done, self._total)

    def _solve(
        self, layer: WeightedLayer, weight: Tensor, bias: Tensor | None, exact: Values, rounded: Values
    ) -> tuple[Tensor, Tensor | None]:
        grid = self.record.weights[layer.weight]
        shape = rows_of(layer, weight)
        if shape is None:
            return on_grid(weight, grid), bias
        groups, outputs, inputs = shape.shape
        moments = Moments.zeros(groups, inputs)
        for wanted, got in zip(exact, rounded, strict=True):
            moments.add(patches(layer, weight, wanted), patches(layer, weight, got), means_only=not self.learn)
        if self.learn:
            targets, metric = compensated_rows(shape, moments, RIDGE), damped_metric(moments, DAMPING)
            scale = grid.scale.expand(groups * outputs).reshape(groups, outputs)
            limit = self.record.scheme.weight_limit
            anchors = rows_of(layer, quantize_weight(weight, grid).float())
            assert anchors is not None
            anchors = torch.where(anchors.abs() >= limit, anchors, 0.0)
            solved = round_rows(targets, metric, scale, limit, anchors) * scale[:, :, None]
        else:
            nearest = rows_of(layer, on_grid(weight, grid))
            assert nearest is not None
            solved = nearest
        if bias is not None:
            wanted_mean, got_mean = moments.means
            lost = (shape @ wanted_mean[:, :, None] - solved @ got_mean[:, :, None]).reshape(-1)
            bias = bias + lost
        return rows_to_weight(layer, solved, weight), bias

    def _file(self, name: str) -> Path | None:
        return None if self.cache_dir is None else self.cache_dir / f"{name}-{self._digest.hexdigest()[:24]}.npz"

    def _recall(self, name: str) -> tuple[Tensor, Tensor | None] | None:
        path = self._file(name)
        if path is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            bias = torch.from_numpy(stored["bias"]) if "bias" in stored else None
            return torch.from_numpy(stored["weight"]), bias

    def _remember(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        path = self._file(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        if bias is None:
            np.savez(unfinished, weight=weight.numpy())
        else:
            np.savez(unfinished, weight=weight.numpy(), bias=bias.detach().numpy())
        unfinished.replace(path)
