"""Embedding tables in 8 bits, a scale a row: they are looked up, never multiplied, and half of a small text model."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekit.quantization import WeightGrid
from edgekit.quantizers.anatomy import aten, replace_tensor, tensor_named
from edgekit.quantizers.grids import SMALLEST_SCALE, on_grid

SMALLEST_TABLE_BYTES = 2**20  # of floats; a smaller one would cost two more nodes a call, and save little
LIMIT = 127


def embedding_tables(graph: GraphModule) -> dict[str, list[Node]]:
    """The look-ups of each float [rows, width] table that nothing else reads (tied weights are also multiplied by)."""
    found: dict[str, list[Node]] = {}
    shared: set[str] = set()
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        lookups = [user for user in node.users if user.target is aten.embedding.default and user.args[0] is node]
        if len(lookups) < len(node.users):
            shared.add(name)
        elif lookups:
            found.setdefault(name, []).extend(lookups)
    return {name: nodes for name, nodes in found.items() if name not in shared and _is_large(graph, name)}


def round_tables(graph: GraphModule) -> dict[str, WeightGrid]:
    """Puts the large tables onto symmetric grids, one a row, in place; the grids by the tables' names."""
    grids = {}
    for name in embedding_tables(graph):
        table = tensor_named(graph, name).detach()
        scale = table.abs().amax(1).float() / LIMIT
        scale = torch.where(scale < SMALLEST_SCALE, torch.ones_like(scale), scale)
        grids[name] = WeightGrid(scale, torch.zeros(len(scale), dtype=torch.int64), 0)
        replace_tensor(graph, name, on_grid(table, grids[name]))
    return grids


def _is_large(graph: GraphModule, name: str) -> bool:
    table = tensor_named(graph, name)
    return table.dtype == torch.float32 and table.dim() == 2 and table.nbytes >= SMALLEST_TABLE_BYTES
