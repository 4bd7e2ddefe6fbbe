from __future__ import annotations

import torch

from edgekit.passes.capture import Capture
from edgekit.progress import silent
from edgekit.quantizers.anatomy import layer_mflops, weighted_layers
from edgekit.zoo.fashion import fashion_vit


def test_counting_work_leaves_dynamic_sizes_open() -> None:
    graph = Capture()(fashion_vit(), silent).graph
    layers = weighted_layers(graph)
    assert all(layer_mflops(graph, layer) > 0 for layer in layers)
    batches = [layer.node.meta["val"].shape[0] for layer in layers]
    assert all(isinstance(size, torch.SymInt) and not str(size).isdigit() for size in batches)
