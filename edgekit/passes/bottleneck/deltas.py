"""A tail whose weights may change a little: low-rank deltas of matrices, full ones of what is small.

The deltas keep a trained tail close to the one it came from, where pictures are few, and a checkpoint small (Hu et al.,
arXiv:2106.09685). They are merged into the weights before anything is exported.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from edgekit.model import flatten_outputs


class AdaptedTail(nn.Module):
    """`graph` stays as it is, frozen; only the deltas are parameters. All zero at first."""

    def __init__(self, graph: GraphModule, rank: int, seed: int = 0) -> None:
        super().__init__()
        self._frozen = (copy.deepcopy(graph),)  # a tuple hides it from the parameters and the state
        generator = torch.Generator().manual_seed(seed)
        self.left, self.right, self.full = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.names: list[tuple[str, str]] = []
        for number, (name, weight) in enumerate(float_weights(graph).items()):
            key = f"{number:03d}"
            rows, columns = weight.shape[0] if weight.dim() else 1, weight[0].numel() if weight.dim() else 1
            if weight.dim() >= 2 and rank * (rows + columns) * 2 < weight.numel():
                self.left[key] = nn.Parameter(torch.zeros(rows, rank))
                self.right[key] = nn.Parameter(torch.randn(rank, columns, generator=generator) / columns**0.5)
            elif weight.numel() <= 16 * max(weight.shape, default=1):
                self.full[key] = nn.Parameter(torch.zeros_like(weight))
            else:
                continue
            self.names.append((key, name))

    @property
    def graph(self) -> GraphModule:
        return self._frozen[0]

    def weights(self) -> dict[str, Tensor]:
        """The changed weights, by their names in the graph."""
        plain = float_weights(self.graph)
        return {name: plain[name] + self._delta(key, plain[name]) for key, name in self.names}

    def _delta(self, key: str, weight: Tensor) -> Tensor:
        delta: Tensor = (self.left[key] @ self.right[key]).view_as(weight) if key in self.left else self.full[key]
        return delta

    def forward(self, *values: Tensor) -> list[Tensor]:
        return flatten_outputs(functional_call(self.graph, self.weights(), values))

    def teacher(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What the unchanged tail answers."""
        with torch.no_grad():
            return flatten_outputs(self.graph(*values))

    def merged(self) -> GraphModule:
        """A graph of its own with the deltas in its weights."""
        graph = copy.deepcopy(self.graph)
        state = float_weights(graph)
        with torch.no_grad():
            for name, value in self.weights().items():
                state[name].copy_(value)
        return graph


def float_weights(graph: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of floating point, detached, by name."""
    named = [*graph.named_parameters(), *graph.named_buffers()]
    return {name: value.detach() for name, value in named if value.is_floating_point()}
