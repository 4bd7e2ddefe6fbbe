"""int8 weights and activations, on ranges found beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch.fx import GraphModule

from edgekit.errors import UnknownNameError
from edgekit.model import Model, Sample
from edgekit.passes.fold import FoldBatchNorm
from edgekit.progress import Progress
from edgekit.quantization import ActivationGrid, Fallback, Quantization, WeightGrid
from edgekit.quantizers.anatomy import (
    WeightedLayer,
    aten,
    layer_weight,
    normalises_by_layer,
    replace_tensor,
    weighted_layers,
)
from edgekit.quantizers.base import Quantizer
from edgekit.quantizers.calibration import calibrate
from edgekit.quantizers.equalization import EqualizeLayers
from edgekit.quantizers.grids import on_grid, weight_grid
from edgekit.quantizers.learned_rounding import LearnedRounding
from edgekit.quantizers.observers import Observer
from edgekit.quantizers.placement import STEM, Placement, grids, place
from edgekit.quantizers.scores import place_scores
from edgekit.quantizers.smoothing import SmoothOutliers
from edgekit.registry import OBSERVERS


@dataclass(frozen=True)
class StaticInt8(Quantizer):
    """`observer`: a name of the registry OBSERVERS.

    `elementwise`: also add, mul, cat, pooling and moves between quantized layers run in integers; None decides by the
    network, see `placement.place`. `smooth` moves outlier channels from layer norms into the weights behind them
    (smoothing.py), float-equivalently. `learned_rounding` chooses each weight's step by the layer's output error on
    calibration data and corrects the bias with it, where that pays (`learning_pays`); `bias_correction` alone moves the
    bias. `samples` bounds how many of the calibration data both of these take; ranges are found on all.
    `integer_scores`: queries times keys too, where the scheme gains by it and they bear it (scores.py).
    `cache_dir`: learned rounding keeps each finished layer there and goes on where it was interrupted.
    """

    observer: str = "min-max"
    equalize: bool = False
    learned_rounding: bool = True
    bias_correction: bool = True
    elementwise: bool | None = None
    smooth: bool = True
    integer_scores: bool = True
    samples: int = 32
    cache_dir: Path | None = None

    method: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True

    def requires(self, model: Model) -> None:
        super().requires(model)
        if self.observer not in OBSERVERS:
            raise UnknownNameError("observer", self.observer, OBSERVERS)

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        keep = {name for name, _ in self.keep}
        model = self.rewritten(FoldBatchNorm()(model, progress), keep, progress)
        placement = self.placed(model, keep, progress)
        activations = self.activation_grids(model, placement, progress)
        graph = model.copy_graph()
        stems = ((name, STEM) for name in placement.stems)
        layers = [layer for layer in weighted_layers(graph) if layer.node.name in placement.layers]
        record = Quantization(
            method=self.method,
            scheme=self.scheme,
            weights=self.weight_grids(graph, layers),
            activations=activations,
            layers=tuple(placement.layers),
            fallbacks=tuple(Fallback(layer, "float32", why) for layer, why in (*self.keep, *stems)),
        )
        learns = self.learned_rounding and self.learning_pays(graph)
        if learns or self.bias_correction:
            samples = spread(model.calibration, self.samples)
            LearnedRounding(model.graph, graph, record, samples, progress, self.cache_dir, learns).run()
        else:
            round_to_nearest(graph, record, layers)
        detail = f"{len(layers)} layers, {len(record.activations)} activation grids, {self.observer}"
        return replace(model, module=graph, quantization=record), detail

    def learning_pays(self, graph: GraphModule) -> bool:
        """Not with weights of 8 bits in networks that normalise by layer: the bias alone takes a third of DINOv2's
        error in a quarter of the time, and learning a fifteenth of what is left."""
        return not normalises_by_layer(graph) or self.scheme.weight_bits < 8 or self.scheme.reduce_range

    def rewritten(self, model: Model, keep: set[str], progress: Progress) -> Model:
        """Float-equivalent: what makes the activations of `model` easier to put on grids."""
        if self.equalize:
            model = EqualizeLayers()(model, progress)
        if self.smooth and any(node.target is aten.layer_norm.default for node in model.graph.graph.nodes):
            model = SmoothOutliers(self.scheme, frozenset(keep), is_static=True)(model, progress)
        return model

    def placed(self, model: Model, keep: set[str], progress: Progress) -> Placement:
        placement = place(model.graph, self.scheme, keep, self.elementwise)
        if self.scheme.integer_scores and self.integer_scores:
            statistics = calibrate(model, progress)
            place_scores(model.graph, placement, keep, statistics, self._observer(model.graph), self.scheme)
        return placement

    def activation_grids(self, model: Model, placement: Placement, progress: Progress) -> dict[str, ActivationGrid]:
        return grids(placement, calibrate(model, progress), self._observer(model.graph), self.scheme)

    def _observer(self, graph: GraphModule) -> Observer:
        named: Observer = OBSERVERS.load(self.observer)()
        return named.suited(normalises_by_layer(graph))

    def weight_grids(self, graph: GraphModule, layers: list[WeightedLayer]) -> dict[str, WeightGrid]:
        return {layer.weight: weight_grid(layer_weight(graph, layer), layer.axis, self.scheme) for layer in layers}


def round_to_nearest(graph: GraphModule, record: Quantization, layers: list[WeightedLayer]) -> None:
    """Puts the weights of `layers` onto their grids, in place."""
    for layer in layers:
        replace_tensor(graph, layer.weight, on_grid(layer_weight(graph, layer), record.weights[layer.weight]))


def spread(samples: tuple[Sample, ...], count: int) -> tuple[Sample, ...]:
    """At most `count` of `samples`, evenly spread: neighbours are often crops of one picture."""
    if len(samples) <= count:
        return samples
    return tuple(samples[index * len(samples) // count] for index in range(count))
