"""Token coders of the shapes that a checkpoint holds (coders.py reads and writes it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgekit.model import Model
from edgekit.passes.bottleneck.axes import Axes
from edgekit.passes.bottleneck.coders import Coders
from edgekit.passes.bottleneck.deltas import AdaptedTail
from edgekit.passes.bottleneck.rate import LaplaceRate
from edgekit.passes.bottleneck.tokens_coding import modules, token_crossing

PREFIX = "tokens-"


def empty_coders(state: Mapping[str, Tensor], tail: Model, facts: Mapping[str, Any]) -> Coders:
    """Their values are those of a closed form without meaning, for `state` to be loaded into."""
    over_tokens = Axes(state["encoder.pool.mixing"], state["decoder.mixing"], torch.empty(0))
    over_width = Axes(state["encoder.turn"], state["decoder.turn"], torch.empty(0))
    encoder, decoder = modules(
        over_tokens, over_width, state["decoder.mean"], token_crossing(tail), int(facts["hidden"])
    )
    adapted = AdaptedTail(tail.graph, int(facts["adapter_rank"]))
    return Coders(encoder, decoder, adapted, LaplaceRate(torch.ones_like(state["encoder.shift"])[None]))
