"""Learned queries against attention written out; pooling that loses nothing where there is nothing to lose."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgekit.passes.bottleneck.token_pooling import LearnedQueries, PooledStack, TokenPool, heads_for, segment_means
from edgekit.passes.transformer.block import EncoderBlock, FeedForward, SelfAttention


def _block(width: int = 8, heads: int = 2) -> EncoderBlock:
    attention = SelfAttention(*(nn.Linear(width, width) for _ in range(4)), heads)
    feed_forward = FeedForward(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
    return EncoderBlock(attention, feed_forward, nn.LayerNorm(width), nn.LayerNorm(width), is_prenorm=True)


@pytest.mark.parametrize(("count", "length", "width", "heads"), [(1, 1, 3, 1), (3, 5, 6, 2), (7, 2, 8, 4)])
def test_learned_queries_are_attention(count: int, length: int, width: int, heads: int) -> None:
    torch.manual_seed(count)
    layer = LearnedQueries(count, width, heads)
    nn.init.normal_(layer.output.weight)
    tokens = torch.randn(2, length, width)
    with torch.no_grad():
        found = layer(tokens)

    size = width // heads
    for sample, token in enumerate(layer.norm(tokens)):
        for query in range(count):
            parts = []
            for head in range(heads):
                weights = [math.exp(float(layer.score.weight[head * count + query] @ one)) for one in token]
                value = layer.value(token)[:, head * size : (head + 1) * size]
                parts.append(sum(w * v for w, v in zip(weights, value, strict=True)) / sum(weights))
            expected = layer.output(torch.cat(parts))
            assert torch.allclose(found[sample, query], expected, atol=1e-5)


def test_learned_queries_change_nothing_before_training() -> None:
    mixing, tokens = torch.randn(3, 7), torch.randn(2, 7, 8)

    torch.testing.assert_close(TokenPool(mixing, 8, 2)(tokens), torch.matmul(mixing, tokens))


@pytest.mark.parametrize(("count", "length"), [(1, 1), (3, 7), (7, 7), (4, 49)])
def test_segments_part_the_tokens_evenly(count: int, length: int) -> None:
    means = segment_means(count, length)
    sizes = (means > 0).sum(1)

    assert torch.allclose(means.sum(1), torch.ones(count)) and ((means > 0).sum(0) == 1).all()
    assert int(sizes.max() - sizes.min()) <= 1


def test_heads_part_the_width() -> None:
    assert [heads_for(width) for width in (64, 6, 7, 1)] == [4, 3, 1, 1]


def test_pooling_tokens_that_are_alike_changes_nothing() -> None:
    """Four tokens of each kind: a vector that stands for them must weigh as much as they did."""
    torch.manual_seed(0)
    blocks = [_block() for _ in range(3)]
    first, kinds = torch.randn(2, 1, 8), torch.randn(2, 3, 8)
    tokens = torch.cat([first, kinds.repeat_interleave(4, 1)], 1)
    pool = TokenPool(torch.cat([torch.zeros(3, 1), segment_means(3, 12)], 1), 8, 2)
    with torch.no_grad():
        whole = tokens
        for block in blocks:
            whole = block(whole)
        pooled = PooledStack(blocks, 1, pool, 1)(tokens)

    assert pooled.shape == (2, 4, 8)
    assert torch.allclose(pooled, whole[:, [0, 1, 5, 9]], atol=1e-5)
