"""fashion-vit trained to work at several widths and to answer early, by samples/training/train_adaptive_widths.py."""

from __future__ import annotations

from torch import nn

from edgekit.model import Model
from edgekit.passes.adaptive.heads import TokenHead
from edgekit.zoo.fashion import LABELS, FashionVit, fashion_sample

WIDTHS = (1.0, 0.75, 0.5)
EXITS = (2, 4)


class AdaptiveFashionVit(FashionVit):
    """FashionVit with heads and units in order for `widths`, and `exits`: heads by the number of blocks below them."""

    widths = WIDTHS

    def __init__(self) -> None:
        super().__init__()
        self.exits = nn.ModuleDict({str(depth): TokenHead(64, len(LABELS)) for depth in EXITS})


def fashion_vit_adaptive() -> Model:
    """`image` float32 [batch, 1, 28, 28] -> `logits` [batch, 10]. Raises MissingExtraError."""
    return fashion_sample("fashion-vit-adaptive", AdaptiveFashionVit())
