"""A feed-forward layer of experts that tasks share, and what is left of it where one task alone is asked for.

M3ViT (Liang et al., arXiv:2210.14793, sections 3.2 and 3.3): each task has a router of its own, and a task that is not
asked needs none of its experts in memory. There a router picks experts token by token; here a task has its own few, and
the router weighs these for each token: the graph is static, and what is not chosen can be left out of the artifact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError


class TaskExperts(nn.Module):
    """`experts` of `units` each, `chosen` of them for each of `tasks`; all of them until `choose` was called.

    Expert e owns the rows e x units to (e + 1) x units of `expand`, and these columns of `contract`.
    """

    chosen: Tensor

    def __init__(self, channels: int, units: int, experts: int, tasks: int, chosen: int) -> None:
        super().__init__()
        if not 1 <= chosen <= experts:
            raise UsageError(f"{chosen} of {experts} experts for a task, allowed 1 to {experts}")
        self.units, self.experts = units, experts
        self.expand = nn.Linear(channels, experts * units)
        self.activation = nn.GELU()
        self.contract = nn.Linear(experts * units, channels)
        self.routers = nn.ModuleList(nn.Linear(channels, experts) for _ in range(tasks))
        self.register_buffer("chosen", torch.full((tasks, chosen), -1))

    @property
    def is_chosen(self) -> bool:
        return bool((self.chosen >= 0).all())

    def weights(self, tokens: Tensor, task: int) -> Tensor:
        """[B, T, C] -> [B, T, experts], what each counts for: 1 in all, 0 for those that are not the task's."""
        scores: Tensor = self.routers[task](tokens)
        # No branch on values: the whole model is captured as a graph too.
        chosen = self.chosen[task].unsqueeze(1)
        is_own = ((chosen == torch.arange(self.experts)) | (chosen < 0)).any(0)
        return scores.masked_fill(~is_own, float("-inf")).softmax(-1)

    def choose(self, mass: Tensor) -> None:
        """`mass` [tasks, experts]: what each expert counted for; each task keeps those that counted most, in order."""
        self.chosen.copy_(mass.topk(self.chosen.shape[1], dim=1).indices.sort(1).values)

    def forward(self, tokens: Tensor, task: int) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        hidden = self.activation(self.expand(tokens))
        weighed = hidden * self.weights(tokens, task).repeat_interleave(self.units, -1)
        changed: Tensor = self.contract(weighed)
        return changed


class KeptExperts(nn.Module):
    """The experts of one task of `whole`, and nothing else: the same answers for it, on copies of the weights."""

    def __init__(self, whole: TaskExperts, task: int) -> None:
        super().__init__()
        if not whole.is_chosen:
            raise UsageError("every task still uses every expert", hint="train until experts are chosen first")
        own = whole.chosen[task]
        rows = (own[:, None] * whole.units + torch.arange(whole.units)).flatten()
        channels = whole.expand.in_features
        self.units = whole.units
        self.expand = nn.Linear(channels, len(rows))
        self.activation = whole.activation
        self.contract = nn.Linear(len(rows), channels)
        self.router = nn.Linear(channels, len(own))
        router = whole.routers[task]
        assert isinstance(router, nn.Linear)
        with torch.no_grad():
            for layer, weight, bias in (
                (self.expand, whole.expand.weight[rows], whole.expand.bias[rows]),
                (self.contract, whole.contract.weight[:, rows], whole.contract.bias),
                (self.router, router.weight[own], router.bias[own]),
            ):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)

    def forward(self, tokens: Tensor, task: int = 0) -> Tensor:
        """[B, T, C] -> [B, T, C]; there is only one `task`."""
        hidden = self.activation(self.expand(tokens)).unflatten(-1, (-1, self.units))
        weighed = hidden * self.router(tokens).softmax(-1).unsqueeze(-1)
        changed: Tensor = self.contract(weighed.flatten(-2))
        return changed
