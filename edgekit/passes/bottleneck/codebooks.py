"""Codebooks: tensors in, tensors out. k-means and residual product quantization.

k-means starts by Arthur and Vassilvitskii's k-means++ (SODA 2007) and goes on by Lloyd's rounds (IEEE Trans. Inf.
Theory 28(2), 1982); with a price on bits it is the entropy-constrained form of Chou, Lookabaugh and Gray (IEEE Trans.
ASSP 37(1), 1989). Stages that code what the stages before them left over: Juang and Gray (ICASSP 1982); groups of
columns with a codebook each: Jegou, Douze and Schmid (IEEE TPAMI 33(1), 2011). On CUDA the rounds run on the kernels
of runtimes.kernels, which compute the same (no GPU has fitted a codebook yet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.runtimes.kernels import lloyd

Unit = tuple[int, int]  # (group, stage)


def kmeans(
    points: Tensor, count: int, *, seed: int, rounds: int = 25, price: float = 0.0, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[N, D] -> codewords [count, D] and the nearest one of each point, [N] int64. The same seed, the same result.

    Least sum of (x - c)^T M (x - c) + price x bits, bits = -log2 of the codeword's share; `metric` M: [D, D], the
    identity where None. A codeword without points starts again at the point that is coded worst.
    """
    if metric is not None:
        factor = _root(metric)
        codewords, labels = kmeans(points @ factor, count, seed=seed, rounds=rounds, price=price)
        # Means commute with the map: those of the original points need no inverse, which M may lack.
        return lloyd.update(points, labels, codewords @ torch.linalg.pinv(factor)), labels
    codewords = _seeds(points, count, torch.Generator().manual_seed(seed))
    bits = points.new_zeros(count)
    labels = assign(points, codewords, price * bits)
    for _ in range(rounds):
        codewords = lloyd.update(points, labels, codewords)
        _reseed_empty(points, labels, codewords)
        bits = -_shares(labels, count, points.dtype).log2()
        changed = assign(points, codewords, price * bits)
        if torch.equal(changed, labels):
            break
        labels = changed
    return codewords, labels


def assign(points: Tensor, codewords: Tensor, penalty: Tensor | None = None) -> Tensor:
    """[N, D], [K, D] -> the codeword of the least squared distance plus `penalty` [K], [N] int64."""
    return lloyd.assign(points, codewords, penalty).long()


def _seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Each next seed is drawn in proportion to its squared distance from those before; on the processor, wherever the
    points are, so that a seed of the generator means the same everywhere."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    nearest = (points - points[first]).square().sum(1)
    for _ in range(count - 1):
        weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        index = int(torch.multinomial(weights.cpu(), 1, generator=generator))
        chosen.append(index)
        nearest = torch.minimum(nearest, (points - points[index]).square().sum(1))
    return points[chosen].clone()


def _reseed_empty(points: Tensor, labels: Tensor, codewords: Tensor) -> None:
    empty = torch.bincount(labels, minlength=len(codewords)) == 0
    if bool(empty.any()):
        errors = (points - codewords[labels]).square().sum(1)
        worst = errors.topk(min(int(empty.sum()), len(points))).indices
        codewords[empty.nonzero()[: len(worst), 0]] = points[worst]


def _shares(labels: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Of each codeword, with half a point added so that none costs infinitely many bits."""
    counts = torch.bincount(labels, minlength=count).to(dtype) + 0.5
    return counts / counts.sum()


def _root(metric: Tensor) -> Tensor:
    """F with F F^T = M."""
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root


@dataclass(frozen=True)
class Codebooks:
    """`codewords`: [G, S, K, d], `shares`: [G, S, K] of each codeword, `prices`: [G, S], of a bit in
    squared distance.

    `units`: (group, stage) in the order of what they gain for a bit; the stages of a group in order. A rate keeps
    the first so many of them.
    """

    codewords: Tensor
    shares: Tensor
    prices: Tensor
    units: tuple[Unit, ...]

    @property
    def penalties(self) -> Tensor:
        """[G, S, K]: price x bits."""
        return self.prices[..., None] * -self.shares.log2()

    def encode(self, points: Tensor) -> Tensor:
        """[N, G d] -> indices [N, G, S] int64, stage after stage."""
        groups, stages, _, width = self.codewords.shape
        indices = torch.empty(len(points), groups, stages, dtype=torch.long, device=points.device)
        for group, rest in enumerate(points.reshape(-1, groups, width).unbind(1)):
            for stage in range(stages):
                codewords = self.codewords[group, stage]
                indices[:, group, stage] = assign(rest, codewords, self.penalties[group, stage])
                rest = rest - codewords[indices[:, group, stage]]
        return indices

    def decode(self, indices: Tensor, kept: int | None = None) -> Tensor:
        """[N, G, S] -> [N, G d] from the first `kept` units (all where None). Gradients reach the codewords."""
        groups, _, _, width = self.codewords.shape
        sums: list[Tensor] = [self.codewords.new_zeros(len(indices), width) for _ in range(groups)]
        for group, stage in self.units[:kept]:
            sums[group] = sums[group] + self.codewords[group, stage][indices[:, group, stage]]
        return torch.cat(sums, 1)

    def bits(self) -> Tensor:
        """Entropy of each unit, [G, S], bits for one point."""
        return -(self.shares * self.shares.log2()).sum(-1)


def fit_codebooks(
    points: Tensor, *, groups: int, stages: int, codewords: int, seed: int, price: float = 0.0, rounds: int = 25
) -> Codebooks:
    """Residual product codebooks for `points` [N, D], D a multiple of `groups`.

    `price` is relative: the share of what a unit finds left over that a bit of it may cost. One price for all units
    would be right for one rate; on a ladder it would price the late stages away.
    """
    width = points.shape[1] // groups
    books = points.new_zeros(groups, stages, codewords, width)
    shares = points.new_zeros(groups, stages, codewords)
    prices = points.new_zeros(groups, stages)
    gains: dict[Unit, float] = {}
    for group, rest in enumerate(points.reshape(-1, groups, width).unbind(1)):
        for stage in range(stages):
            left = float(rest.square().sum(1).mean())
            cost = price * left
            prices[group, stage] = cost
            book, labels = kmeans(rest, codewords, seed=seed + group * stages + stage, rounds=rounds, price=cost)
            books[group, stage], shares[group, stage] = book, _shares(labels, codewords, points.dtype)
            rest = rest - book[labels]
            bits = float(-(shares[group, stage] * shares[group, stage].log2()).sum())
            gains[group, stage] = (left - float(rest.square().sum(1).mean())) / max(bits, 1e-3)
    return Codebooks(books, shares, prices, order_units(gains, groups, stages))


def order_units(gains: dict[Unit, float], groups: int, stages: int) -> tuple[Unit, ...]:
    """The unit of the largest gain for a bit first, among the next stages of each group."""
    depth = [0] * groups
    order: list[Unit] = []
    while len(order) < groups * stages:
        open_groups = [group for group in range(groups) if depth[group] < stages]
        best = max(open_groups, key=lambda group: gains[group, depth[group]])
        order.append((best, depth[best]))
        depth[best] += 1
    return tuple(order)


def rate_prefixes(units: int, rates: int) -> tuple[int, ...]:
    """How many units each rate keeps, finest first: `rates` steps of equal ratio from all of them to one, or fewer."""
    steps: Sequence[int] = [round(units ** (1 - index / max(rates - 1, 1))) for index in range(rates)]
    return tuple(sorted({max(1, step) for step in steps}, reverse=True))


def move_average(codewords: Tensor, points: Tensor, labels: Tensor, decay: float) -> Tensor:
    """[K, D] a step towards the mean of the points [N, D] that `labels` [N] give each: an exponential moving average
    (van den Oord et al., arXiv:1711.00937, appendix A.1). Codewords without points stay."""
    return decay * codewords + (1 - decay) * lloyd.update(points, labels, codewords)
