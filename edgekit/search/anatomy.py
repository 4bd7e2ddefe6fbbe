"""Which layers of a captured graph belong together: the parts whose precision is chosen as one, and what they cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.costs import segments
from edgekit.costs.operators import operator_of
from edgekit.devices.device import Device
from edgekit.devices.latency import predict
from edgekit.errors import SourceError
from edgekit.model import Model
from edgekit.passes.transformer.families import find_encoder
from edgekit.quantizers.anatomy import WeightedLayer, layer_weight, weighted_layers

# Without blocks the layers are taken in so many runs of neighbours.
RUNS = 10
STEM, HEAD = "stem", "head"


@dataclass(frozen=True)
class Group:
    """`layers`: names of graph nodes, in order. `weights`: how many numbers they hold."""

    name: str
    layers: tuple[str, ...]
    weights: int


def encoder_path(model: Model) -> str | None:
    """Where the encoder's list of layers sits in a Model that is not captured; None where there is none."""
    if model.onnx_path is not None:
        return None
    try:
        return find_encoder(model.module, model.name).path
    except SourceError:
        return None


def groups(captured: Model, path: str | None, present: Sequence[int] | None = None) -> tuple[Group, ...]:
    """In the order in which they run: `stem`, `block 0 attention`, `block 0 feed-forward`, ..., `head`; `part 1` and so
    on where no encoder is known. A pruned graph has the same names as the whole one; `present` are the blocks that it
    still has, None: all."""
    layers = weighted_layers(captured.graph)
    named = _by_block(layers, path, present) if path is not None else []
    if not named:
        size = max(1, -(-len(layers) // RUNS))
        named = [(f"part {index // size + 1}", layer) for index, layer in enumerate(layers)]
    found: dict[str, list[WeightedLayer]] = {}
    for name, layer in named:
        found.setdefault(name, []).append(layer)
    return tuple(
        Group(name, tuple(one.node.name for one in own), sum(layer_weight(captured.graph, one).numel() for one in own))
        for name, own in found.items()
    )


def _by_block(
    layers: Sequence[WeightedLayer], path: str, present: Sequence[int] | None
) -> list[tuple[str, WeightedLayer]]:
    """The last two layers of a block are its feed-forward part, whatever its attention is made of."""
    pattern = re.compile(re.escape(path) + r"\.(?:0\.run\.blocks\.)?(\d+)\.")
    blocks = [int(found[1]) if (found := pattern.search(layer.weight)) else None for layer in layers]
    if not any(block is not None for block in blocks):
        return []
    first = next(index for index, block in enumerate(blocks) if block is not None)
    named = []
    for index, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
        if block is None:
            named.append((STEM if index < first else HEAD, layer))
        else:
            left = sum(other == block for other in blocks[index:])
            number = block if present is None else present[block]
            named.append((f"block {number} {'feed-forward' if left <= 2 else 'attention'}", layer))
    return named


def latencies(captured: Model, path: str | None, precision: str, device: Device, format: str) -> dict[str, float]:
    """Milliseconds by group, and under `block N tokens` what stands between attention and feed-forward part."""
    own = groups(captured, path)
    segs = segments(captured, precision)
    owner = _owners(captured, own)
    found: dict[str, float] = {}
    for time in predict(segs, device, format).by_segment:
        name = owner[operator_of(time.name)]
        found[name] = found.get(name, 0.0) + time.latency_ms
    return found


def _owners(captured: Model, own: Sequence[Group]) -> dict[str, str]:
    """Graph node -> group: a node belongs to the first layer behind it, or to the group that it stands within. Between
    an attention and a feed-forward part stand the tokens, behind the last layer its own group."""
    owner_of_layer = {layer: group.name for group in own for layer in group.layers}
    found: dict[str, str] = {}
    waiting: list[str] = []
    before = own[0].name if own else HEAD
    for node in captured.graph.graph.nodes:
        waiting.append(node.name)
        group = owner_of_layer.get(node.name)
        if group is None:
            continue
        between = group
        if group.endswith(" feed-forward") and before != group:
            between = group.replace("feed-forward", "tokens")
        found |= dict.fromkeys(waiting[:-1], between) | {node.name: group}
        waiting, before = [], group
    return found | dict.fromkeys(waiting, before)
