"""RepQuant (Li et al. 2024, arXiv:2402.05628): static quantization of transformers for few bits.

Layer norms are reparameterized (reparameterization.py), both ends of every range are learned (clipping.py), weights
are rebuilt layer by layer on the activations that really reach them (learned_rounding.py). With `attention` the
products of queries, keys, probabilities and values run in integers too; key channels of two humps are folded into
one (sign_folding.py, from PTQ4SAM).

The paper's log-sqrt2 grid for probabilities (logarithm.py) needs shifts where integer kernels have multiplications:
no format here carries it, so exported probabilities lie on the uniform grid of the container, 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule

from edgekit.model import Model
from edgekit.progress import Progress
from edgekit.quantization import ActivationGrid, WeightGrid
from edgekit.quantizers.anatomy import WeightedLayer, layer_weight, through_padding, weighted_layer
from edgekit.quantizers.attention import OpenAttention, attentions
from edgekit.quantizers.clipping import learn_clips
from edgekit.quantizers.grids import clipped_grid
from edgekit.quantizers.placement import Placement, activation_grid
from edgekit.quantizers.reparameterization import Reparameterize
from edgekit.quantizers.rows import draw_rows
from edgekit.quantizers.sign_folding import FoldSigns
from edgekit.quantizers.smoothing import REWRITE
from edgekit.quantizers.static import StaticInt8


@dataclass(frozen=True)
class RepQuant(StaticInt8):
    """`reparameterize`, `learn_clips`: the two parts named so above. `attention`: its products too in integers."""

    smooth: bool = False
    integer_scores: bool = False
    reparameterize: bool = True
    learn_clips: bool = True
    attention: bool = False
    fold_signs: bool = True
    samples: int = 64

    def rewritten(self, model: Model, keep: set[str], progress: Progress) -> Model:
        model = super().rewritten(model, keep, progress)
        if self.reparameterize:
            model = Reparameterize(self.scheme, frozenset(keep), self.learn_clips)(model, progress)
        if self.attention:
            model = OpenAttention()(model, progress)
        if self.attention and self.fold_signs:
            model = FoldSigns()(model, progress)
        return model

    def placed(self, model: Model, keep: set[str], progress: Progress) -> Placement:
        placement = super().placed(model, keep, progress)
        for found in attentions(model.graph) if self.attention else ():
            for product, operands in (
                (found.scores, (found.query, found.key)),
                (found.mixed, (found.probabilities, found.value)),
            ):
                if product.name not in keep:
                    placement.layers.append(product.name)
                    for operand in operands:
                        placement.family.setdefault(operand.name, operand.name)
        return placement

    def activation_grids(self, model: Model, placement: Placement, progress: Progress) -> dict[str, ActivationGrid]:
        found = super().activation_grids(model, placement, progress)
        if self.learn_clips:
            found |= self._learned(model, placement, progress)
        rewrite = model.graph.meta.get(REWRITE)
        ranges: dict[str, tuple[float, float]] = {} if rewrite is None else rewrite.ranges
        for name in ranges.keys() & found.keys():
            low, high = ranges[name]
            found[name] = activation_grid(low, high, self.scheme)
        wide = replace(self, scheme=replace(self.scheme, activation_bits=8))
        in_eight_bits = super(RepQuant, wide).activation_grids(model, placement, progress)
        return found | {name: in_eight_bits[name] for name in self._results(model, placement) & found.keys()}

    def weight_grids(self, graph: GraphModule, layers: list[WeightedLayer]) -> dict[str, WeightGrid]:
        if not self.learn_clips or self.scheme.weight_bits == 8:
            return super().weight_grids(graph, layers)
        return {layer.weight: clipped_grid(layer_weight(graph, layer), layer.axis, self.scheme) for layer in layers}

    def _results(self, model: Model, placement: Placement) -> set[str]:
        """What no layer reads as integers, and probabilities: 8 bits of the container cost nothing there."""
        layers = set(placement.layers)
        read = {
            through_padding(source).name
            for node in model.graph.graph.nodes
            if node.name in layers
            for source in node.all_input_nodes
        }
        return (set(placement.family) - read) | {one.probabilities.name for one in attentions(model.graph)}

    def _learned(self, model: Model, placement: Placement, progress: Progress) -> dict[str, ActivationGrid]:
        """Of what only linear layers read, by the error of their outputs."""
        rewrite = model.graph.meta.get(REWRITE)
        known = set() if rewrite is None else rewrite.ranges.keys()
        groups: dict[str, list[torch.Tensor]] = {}
        for node in model.graph.graph.nodes:
            layer = weighted_layer(node)
            if layer is None or node.name not in placement.layers or layer.is_convolution or layer.axis is None:
                continue
            weight = layer_weight(model.graph, layer).detach()
            if layer.source.name in known:
                continue
            groups.setdefault(layer.source.name, []).append(weight if layer.axis == 0 else weight.T)
        drawn = draw_rows(model, dict.fromkeys(groups, -1))
        first, last = self.scheme.activation_range
        grids = {}
        for done, (name, weights) in enumerate(groups.items()):
            rows, seen = torch.cat(weights), drawn[name]
            low, high = seen.low.min().clamp(max=0), seen.high.max().clamp(min=0)
            if self.scheme.symmetric_activations:
                high = torch.maximum(high, -low)
                low = -high
            low, high = learn_clips(seen.values, low, high, rows.T @ rows, last - first)
            grids[name] = activation_grid(float(low), float(high), self.scheme)
            progress("learn clips", done + 1, len(groups))
        return grids
