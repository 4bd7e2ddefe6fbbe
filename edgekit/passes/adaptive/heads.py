"""What reads an early answer off the tokens behind a block.

BranchyNet (Teerapittayanon et al., arXiv:1709.01686): one classifier a branch. Distilled from the whole model's own
answers, as in `edgekit.passes.exits`, so that no labels are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of ridge regression, in parts of the mean eigenvalue.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class TokenHead(nn.Module):
    """[B, T, C] -> [B, classes], or [B, D] of an embedding: the first token and the mean of all, each normalized, and
    one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(2 * channels, classes)

    def pool(self, tokens: Tensor) -> Tensor:
        """[B, T, C] -> [B, 2 C]."""
        return torch.cat([self.norm(tokens[:, 0]), self.norm(tokens.mean(1))], 1)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pool(tokens))
        return logits


def fit_map(head: TokenHead, pooled: Tensor, target: Tensor) -> None:
    """Ridge regression onto `target` [N, D], the final embeddings: `pooled` [N, 2 C]; N may be less than 2 C.

    Its weight is the one of PENALTIES that predicts each sample best from all the others, in closed form: the residual
    over 1 - the sample's own leverage.
    """
    center, level = pooled.mean(0), target.mean(0)
    rows, wanted = (pooled - center).double(), (target - level).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values = values.clamp_min(0)

    def left_out(penalty: float) -> float:
        shrunk = values / (values + penalty)
        leverage = (vectors.square() * shrunk).sum(1, keepdim=True) + 1 / len(rows)
        missed = wanted - vectors @ (shrunk[:, None] * (vectors.T @ wanted))
        return float((missed / (1 - leverage).clamp_min(1e-6)).square().sum())

    scale = float(values.mean()) + 1e-12
    best = min((scale * penalty for penalty in PENALTIES), key=left_out)
    weight = rows.T @ (vectors @ ((vectors.T @ wanted) / (values + best)[:, None]))
    with torch.no_grad():
        head.linear.weight.copy_(weight.T)
        head.linear.bias.copy_(level - center @ weight.float())


def distill(head: TokenHead, pooled: Tensor, target: Tensor, weight_decay: float, steps: int) -> None:
    """Fits the linear layer of `head`: `pooled` [N, 2 C], `target` [N, classes] probabilities; full-batch L-BFGS."""
    linear = head.linear
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(target.mean(0).clamp_min(1e-6).log())
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(linear(pooled), target) + weight_decay * linear.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
