"""Keys of two humps folded into one: the sign of a channel moves into the queries.

PTQ4SAM (Lv et al. 2024, arXiv:2405.03144, section 3.2): behind the linear layer of keys some channels lie around one
positive value, some around its negative. One grid then spans both humps and the empty middle. With g = +-1 a channel,
q k = (q g)(g k): g goes into the rows of both layers and the function stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.progress import Progress
from edgekit.quantizers.anatomy import replace_tensor, tensor_named
from edgekit.quantizers.attention import Attention, attentions
from edgekit.quantizers.channels import ChannelTrace, trace_channels
from edgekit.quantizers.reparameterization import scaled_by
from edgekit.quantizers.rows import draw_rows


@dataclass(frozen=True)
class FoldSigns(Pass):
    """Float-equivalent. For open attention whose queries and keys come from linear layers by moves and factors alone.

    Keys are folded where that shrinks their range to `worthwhile` of what it was.
    """

    worthwhile: float = 0.8

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        found = list(attentions(model.graph))
        if not found or not model.calibration:
            return model, "no open attention"
        trace = trace_channels(model)
        pairs = [_pairs(trace, one) for one in found]
        origins = {trace.found[one.key].origin.name: -1 for one, pair in zip(found, pairs, strict=True) if pair}
        drawn = draw_rows(model, origins)
        graph, folded = model.copy_graph(), 0
        for one, pair in zip(found, pairs, strict=True):
            if pair is None:
                continue
            query, key = trace.found[one.query].origin, trace.found[one.key].origin
            seen = drawn[key.name]
            signs = self.signs(seen.low[pair[1]], seen.high[pair[1]], seen.values[:, pair[1]].mean(0))
            if (signs < 0).any():
                _flip(graph, query, pair[0], signs)
                _flip(graph, key, pair[1], signs)
                folded += 1
        graph.recompile()
        return replace(model, module=graph), f"{folded} of {len(found)} attentions"

    def signs(self, low: Tensor, high: Tensor, mean: Tensor) -> Tensor:
        """[C] of +-1, by the range and mean of each key channel; all +1 where folding does not pay."""
        signs = torch.where(mean < 0, -1.0, 1.0)
        ends = torch.where(signs > 0, low, -high), torch.where(signs > 0, high, -low)
        return signs if _span(*ends) <= self.worthwhile * _span(low, high) else torch.ones_like(signs)


def _span(low: Tensor, high: Tensor) -> float:
    """Of the one grid of all channels, which holds zero."""
    return max(float(high.max()), 0.0) - min(float(low.min()), 0.0)


def _pairs(trace: ChannelTrace, one: Attention) -> tuple[Tensor, Tensor] | None:
    """(channels of the queries' layer, channels of the keys' layer) that are multiplied with each other, [C] each."""
    query, key = trace.found.get(one.query), trace.found.get(one.key)
    if query is None or key is None or scaled_by(query.origin) is None or scaled_by(key.origin) is None:
        return None
    rows = query.index.narrow(-2, 0, 1).squeeze(-2), key.index.narrow(-1, 0, 1).squeeze(-1)  # [.., D]
    if not bool((query.index == rows[0].unsqueeze(-2)).all() and (key.index == rows[1].unsqueeze(-1)).all()):
        return None
    pairs = sorted(set(zip(rows[0].flatten().tolist(), rows[1].flatten().tolist(), strict=True)))
    queries, keys = (torch.tensor(side) for side in zip(*pairs, strict=True))
    if len(set(queries.tolist())) != len(pairs) or len(set(keys.tolist())) != len(pairs):
        return None
    read = trace.read_by(query.origin, queries) | trace.read_by(key.origin, keys)
    return (queries, keys) if read == {one.scores} else None


def _flip(graph: GraphModule, origin: Node, channels: Tensor, signs: Tensor) -> None:
    names = scaled_by(origin)
    assert names is not None
    for name in names:
        value = tensor_named(graph, name).detach().clone()
        value[channels] = value[channels] * signs.view(-1, *[1] * (value.dim() - 1))
        replace_tensor(graph, name, value)
