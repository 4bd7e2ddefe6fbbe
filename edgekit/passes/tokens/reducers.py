"""From T tokens to fewer, the class token untouched. All graphs are static: how many stay is a number of the graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.passes.tokens.scores import AccumulatedAttention, Scorer
from edgekit.passes.tokens.state import IGNORED, Tokens, rows, unit
from edgekit.passes.transformer.block import Attended

# What the highest score counts at least: where all others are padding or score nothing, protected tokens still lead.
LEAST_SCORE = 1e-3


class Reducer(ABC):
    """`fewest_share`: of the content tokens, what one step leaves at least."""

    fewest_share: float = 0.0

    def observe(self, tokens: Tokens, attended: Attended, protected: int) -> Tokens:
        """Called for every block, before `reduce` where that is due."""
        return tokens

    @abstractmethod
    def reduce(self, tokens: Tokens, attended: Attended, keep: int, protected: int) -> Tokens:
        """`keep` of `tokens`, protected ones counted, at least protected + 1. Padding goes before content."""


@dataclass(frozen=True)
class KeepBest(Reducer):
    """The tokens that `scorer` gives most to, in the order of their scores.

    Cascade token pruning of SpAtten (Wang, Zhang, Han, HPCA 2021, section III.A) with its scorer; once gone, gone.
    """

    scorer: Scorer = AccumulatedAttention()

    def observe(self, tokens: Tokens, attended: Attended, protected: int) -> Tokens:
        return replace(tokens, importance=self.scorer.score(tokens, attended, protected))

    def reduce(self, tokens: Tokens, attended: Attended, keep: int, protected: int) -> Tokens:
        assert tokens.importance is not None
        return tokens.take(best(tokens.importance, tokens.sizes, keep, protected))


@dataclass(frozen=True)
class MergeSimilar(Reducer):
    """Every second token is compared with the others by the keys' cosine; the most similar pairs become one, the mean
    weighted by size. At most half of the content goes in one step.

    Bolya et al.: Token Merging, arXiv:2210.09461, section 3 (bipartite soft matching), after the paper alone.
    """

    fewest_share = 0.5

    def reduce(self, tokens: Tokens, attended: Attended, keep: int, protected: int) -> Tokens:
        sizes = tokens.known_sizes
        key = unit(attended.keys.mean(1))
        first = torch.arange(protected, tokens.count, 2, device=key.device)
        second = torch.arange(protected + 1, tokens.count, 2, device=key.device)
        merged = min(tokens.count - keep, len(second), len(first))
        similar = key[:, first] @ key[:, second].transpose(1, 2)
        full = (sizes > 0).to(key.dtype)
        apart = (full[:, first].unsqueeze(2) - full[:, second].unsqueeze(1)).abs()
        empty = (1 - full[:, first].unsqueeze(2)) * (1 - full[:, second].unsqueeze(1))
        nearness, partner = (similar - 4.0 * apart + 4.0 * empty).max(2)
        order = nearness.topk(len(first), dim=1).indices  # not argsort: ExecuTorch has no kernel for it
        leaving, staying = order[:, :merged], order[:, merged:]
        going = first[leaving]
        goal = partner.gather(1, leaving)
        # [N, K, |second|]: a matrix product adds up what meets in one token, on every runtime.
        into = (goal.unsqueeze(2) == torch.arange(len(second), device=key.device)).to(key.dtype)
        weight = sizes.gather(1, going)
        total = sizes[:, second] + (into * weight.unsqueeze(2)).sum(1)
        summed = tokens.values[:, second] * sizes[:, second].unsqueeze(2)
        summed = summed + into.transpose(1, 2) @ (rows(tokens.values, going) * weight.unsqueeze(2))
        mean = summed / total.clamp(min=1e-6).unsqueeze(2)
        kept = first[staying]
        lead = slice(0, protected)
        return Tokens(
            values=torch.cat([tokens.values[:, lead], rows(tokens.values, kept), mean], 1),
            sizes=torch.cat([sizes[:, lead], sizes.gather(1, kept), total], 1),
            importance=None,
            owners=None
            if tokens.owners is None
            else self._places(tokens.count, protected, order, partner, merged).gather(1, tokens.owners),
        )

    @staticmethod
    def _places(count: int, protected: int, order: Tensor, partner: Tensor, merged: int) -> Tensor:
        """Where each of the tokens before is now, int64 [N, T]. `order` [N, F] of the first tokens by nearness,
        `partner` [N, F] of each one's nearest second.

        In float until the end: LiteRT's indices are of 32 bits where torch's are of 64, and it joins no two kinds.
        """
        batch, firsts = order.shape
        stay = firsts - merged
        number = torch.arange(firsts, device=order.device)
        found = (order.unsqueeze(2) == number).to(torch.float32)
        rank = (number.to(torch.float32)[None, None, :] @ found).squeeze(1)
        with_partner = partner.to(torch.float32) + float(protected + stay)
        first = torch.where(rank < merged, with_partner, rank + float(protected - merged))
        seconds = count - protected - firsts
        second = torch.arange(seconds, device=order.device, dtype=torch.float32) + float(protected + stay)
        lead = torch.arange(protected, device=order.device, dtype=torch.float32).expand(batch, -1)
        pairs = torch.stack([first[:, :seconds], second.expand(batch, -1)], 2).reshape(batch, 2 * seconds)
        return torch.cat([lead, pairs, first[:, seconds:]], 1).to(torch.int64)


@dataclass(frozen=True)
class SelectDiverse(KeepBest):
    """A share of the tokens by `scorer`, the rest spread out: again and again the one least like those taken.

    Yang et al.: EfficientVLA, arXiv:2506.10100, section 3.2 (task-relevant and diverse visual tokens). The loop is
    unrolled in the graph: for small `keep`.
    """

    by_score: float = 0.5

    def reduce(self, tokens: Tokens, attended: Attended, keep: int, protected: int) -> Tokens:
        assert tokens.importance is not None
        sure = protected + max(1, round(self.by_score * (keep - protected)))
        chosen = best(tokens.importance, tokens.sizes, min(sure, keep), protected)
        direction = unit(tokens.values)
        closest = (direction @ rows(direction, chosen).transpose(1, 2)).max(2).values
        taken = torch.zeros_like(closest).scatter(1, chosen, 1.0)
        if tokens.sizes is not None:
            closest = closest + (tokens.sizes <= 0) * 4.0
        for _ in range(keep - chosen.shape[1]):
            further = (closest + taken * 16.0).argmin(1, keepdim=True)
            chosen = torch.cat([chosen, further], 1)
            taken = taken.scatter(1, further, 1.0)
            closest = torch.maximum(closest, (direction @ rows(direction, further).transpose(1, 2)).squeeze(2))
        return tokens.take(chosen)


def best(scores: Tensor, sizes: Tensor | None, keep: int, protected: int) -> Tensor:
    """int64 [N, keep]: the protected tokens, then those of the highest `scores` [N, T], 0 and above; padding last."""
    if sizes is not None:
        scores = torch.where(sizes > 0, scores, torch.full_like(scores, IGNORED))
    return protected_first(scores, protected).topk(keep, dim=1).indices


def protected_first(scores: Tensor, protected: int) -> Tensor:
    """`scores` [N, T] with the protected tokens above all others, in their order.

    By a few times the highest score, not by a number of its own: float16 has no larger one to spare, and an 8-bit grid
    over all of them still tells the others apart. By scores at all, since LiteRT cannot join their indices with others.
    """
    if not protected:
        return scores
    rank = torch.arange(scores.shape[1], device=scores.device, dtype=scores.dtype)
    highest = scores[:, protected:].amax(1, keepdim=True).clamp(min=LEAST_SCORE)
    return torch.where(rank < protected, highest * (protected + 2.0 - rank), scores)
