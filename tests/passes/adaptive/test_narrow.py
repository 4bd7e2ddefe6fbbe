from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.passes.adaptive.lean import LeanBlock
from edgekit.passes.adaptive.narrow import narrow, share_of
from edgekit.passes.transformer.block import EncoderBlock, FeedForward, SelfAttention


def block(*, is_prenorm: bool = True, key_bias: bool = True, head: int = 3, value_head: int = 3) -> EncoderBlock:
    torch.manual_seed(0)
    attention = SelfAttention(
        nn.Linear(12, 4 * head),
        nn.Linear(12, 4 * head, bias=key_bias),
        nn.Linear(12, 4 * value_head),
        nn.Linear(4 * value_head, 12),
        heads=4,
    )
    feed_forward = FeedForward(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))
    return EncoderBlock(attention, feed_forward, nn.LayerNorm(12), nn.LayerNorm(12), is_prenorm=is_prenorm).eval()


TOKENS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("count", "width", "kept"), [(4, 1.0, 4), (4, 0.75, 3), (6, 0.75, 5), (10, 0.5, 5), (3, 0.01, 1)]
)
def test_a_share_keeps_whole_units_and_at_least_one(count: int, width: float, kept: int) -> None:
    assert share_of(count, width) == kept


@pytest.mark.parametrize("width", [0.0, -0.5, 1.01, float("nan")])
def test_widths_outside_zero_to_one_are_refused(width: float) -> None:
    with pytest.raises(UsageError, match="allowed above 0 to 1"):
        narrow(block(), width)


def test_full_width_is_the_same_block() -> None:
    whole = block()
    torch.testing.assert_close(narrow(whole, 1.0)(TOKENS), whole(TOKENS), rtol=0, atol=0)


def test_a_narrow_block_is_the_whole_one_with_the_last_heads_and_units_silenced() -> None:
    whole, silenced = block(), block()
    with torch.no_grad():
        silenced.attention.output.weight[:, 6:] = 0
        silenced.feed_forward.contract.weight[:, 5:] = 0
    torch.testing.assert_close(narrow(whole, 0.5)(TOKENS), silenced(TOKENS))


def test_training_a_narrow_block_trains_the_corner_of_the_whole_one() -> None:
    whole = block()
    narrow(whole, 0.5)(TOKENS).square().sum().backward()
    gradient = whole.feed_forward.expand.weight.grad
    assert gradient is not None
    assert gradient[:5].abs().sum() > 0 and gradient[5:].abs().sum() == 0


@pytest.mark.parametrize("shape", [{}, {"is_prenorm": False}, {"key_bias": False}, {"head": 2, "value_head": 3}])
@pytest.mark.parametrize("width", [1.0, 0.75, 0.25])
def test_a_lean_block_computes_the_same(shape: dict[str, int], width: float) -> None:
    small = narrow(block(**shape), width)  # type: ignore[arg-type]
    bias = torch.tensor([0.0, 0.0, 0.0, -1e4, 0.0]).reshape(1, 1, 1, 5)
    for added in (None, bias):
        torch.testing.assert_close(LeanBlock(small)(TOKENS, added), small(TOKENS, added), rtol=1e-5, atol=2e-6)


def test_a_lean_block_holds_nothing_of_what_it_does_not_use() -> None:
    whole, lean = block(), LeanBlock(narrow(block(), 0.5))
    norms = 4 * 12
    kept = sum(value.numel() for value in lean.parameters()) - norms
    assert kept == (3 * 6 * 12 + 3 * 6) + (12 * 6 + 12) + (5 * 12 + 5) + (12 * 5 + 12)
    assert kept < 0.6 * (sum(value.numel() for value in whole.parameters()) - norms)
