"""Which tokens stay: on sequences small enough to see the answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekit.passes.tokens.reducers import KeepBest, MergeSimilar, Reducer, SelectDiverse, best, protected_first
from edgekit.passes.tokens.scores import AccumulatedAttention, ClassAttention, NeighbourAware
from edgekit.passes.tokens.state import Tokens
from edgekit.passes.transformer.block import Attended

REDUCERS = [KeepBest(), KeepBest(ClassAttention()), KeepBest(NeighbourAware(ClassAttention())), MergeSimilar()]
REDUCERS += [SelectDiverse()]


def attended(tokens: Tensor, weights: Tensor | None = None, heads: int = 2) -> Attended:
    """Keys and values are the tokens themselves, by head."""
    batch, count, width = tokens.shape
    keys = tokens.reshape(batch, count, heads, width // heads).transpose(1, 2)
    if weights is None:
        weights = torch.softmax(keys @ keys.transpose(2, 3), -1)
    return Attended(weights, keys, keys, torch.zeros_like(tokens))


def reduce(reducer: Reducer, tokens: Tokens, keep: int, protected: int = 1, weights: Tensor | None = None) -> Tokens:
    seen = attended(tokens.values, weights)
    return reducer.reduce(reducer.observe(tokens, seen, protected), seen, keep, protected)


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda reducer: str(reducer)[:40])
@pytest.mark.parametrize("protected", [0, 1, 2])
def test_as_many_stay_as_asked_and_the_protected_lead(reducer: Reducer, protected: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 13, 8)
    found = reduce(reducer, Tokens(values), 9, protected)

    assert found.values.shape == (3, 9, 8)
    assert torch.equal(found.values[:, :protected], values[:, :protected])


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda reducer: str(reducer)[:40])
def test_padding_goes_before_content(reducer: Reducer) -> None:
    torch.manual_seed(1)
    values = torch.randn(2, 11, 8)
    sizes = torch.ones(2, 11)
    sizes[0, 8:] = 0
    found = reduce(reducer, Tokens(values, sizes), 8)

    assert found.sizes is not None
    assert found.sizes.sum(1).tolist() == ([8.0, 11.0] if isinstance(reducer, MergeSimilar) else [8.0, 8.0])
    assert not isinstance(reducer, MergeSimilar) or found.bias is not None


def test_the_most_looked_at_stay() -> None:
    weights = torch.tensor([0.1, 0.05, 0.4, 0.05, 0.3, 0.1]).expand(1, 2, 6, 6)
    values = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 8).contiguous()
    found = reduce(KeepBest(AccumulatedAttention()), Tokens(values), 3, weights=weights)

    assert found.values[0, :, 0].tolist() == [0.0, 2.0, 4.0]


def test_importance_adds_up_over_blocks() -> None:
    first = torch.tensor([0.0, 0.7, 0.1, 0.2]).expand(1, 1, 4, 4)
    second = torch.tensor([0.0, 0.1, 0.1, 0.8]).expand(1, 1, 4, 4)
    values = torch.arange(4.0).view(1, 4, 1).expand(1, 4, 2).contiguous()
    reducer = KeepBest()
    tokens = reducer.observe(Tokens(values), attended(values, first, heads=1), 1)
    tokens = reducer.observe(tokens, attended(values, second, heads=1), 1)

    assert tokens.importance is not None
    assert tokens.importance[0].tolist() == pytest.approx([0.0, 0.8, 0.2, 1.0])


def test_the_most_similar_become_their_mean_by_size() -> None:
    """Tokens 1 and 2 point the same way; 3 and 4 do not."""
    values = torch.tensor([[[9.0, 0.0], [1.0, 0.0], [4.0, 0.0], [0.0, 1.0], [-1.0, 0.2]]])
    sizes = torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0]])
    seen = attended(values, heads=1)
    found = MergeSimilar().reduce(Tokens(values, sizes), seen, 4, 1)

    assert found.sizes is not None and found.bias is not None
    merged = found.sizes[0].tolist().index(3.0)
    assert found.values[0, merged].tolist() == pytest.approx([2.0, 0.0])
    assert float(found.bias[0, 0, 0, merged]) == pytest.approx(float(torch.log(torch.tensor(3.0))))


def test_merging_keeps_the_sum_of_all_tokens() -> None:
    torch.manual_seed(2)
    values = torch.randn(4, 17, 8)
    found = reduce(MergeSimilar(), Tokens(values), 10)

    assert found.sizes is not None
    summed = (found.values * found.sizes.unsqueeze(2)).sum(1)
    assert torch.allclose(summed, values.sum(1), atol=1e-5)


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda reducer: str(reducer)[:40])
def test_each_token_of_the_input_is_spoken_for(reducer: Reducer) -> None:
    torch.manual_seed(3)
    values = torch.randn(2, 12, 8)
    owners = torch.arange(12).expand(2, -1)
    found = reduce(reducer, Tokens(values, owners=owners), 8)

    assert found.owners is not None and found.owners.shape == (2, 12)
    assert found.restored().shape == values.shape
    spoken = [sorted(set(row)) for row in found.owners.tolist()]
    assert spoken == [list(range(8))] * 2
    if isinstance(reducer, MergeSimilar):
        assert torch.allclose(found.restored().sum(1), values.sum(1), atol=1e-5)


def test_diverse_tokens_are_preferred_over_copies() -> None:
    """Three copies of the most looked at token, and one that points elsewhere."""
    values = torch.tensor([[[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.1], [1.0, -0.5]]])
    weights = torch.tensor([0.1, 0.3, 0.3, 0.25, 0.05]).expand(1, 1, 5, 5)
    seen = attended(values, weights, heads=1)
    reducer = SelectDiverse(by_score=0.5)
    found = reducer.reduce(reducer.observe(Tokens(values), seen, 1), seen, 3, 1)

    assert found.values[0, 2].tolist() == [1.0, -0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_protected_tokens_lead_in_their_order_in_any_precision(dtype: torch.dtype, scale: float) -> None:
    """Seven of them, as many as DINOv2 with registers and more; the class token may attend to itself above all."""
    scores = (scale * torch.rand(3, 197, generator=torch.Generator().manual_seed(0))).to(dtype)
    scores[:, 0] = 8 * scale
    sizes = torch.ones(3, 197, dtype=dtype)
    sizes[1, 150:] = 0
    ranked = protected_first(scores, 7)

    assert ranked.isfinite().all()
    assert (ranked[:, :7].diff(dim=1) < 0).all()
    assert (ranked[:, 6] > ranked[:, 7:].amax(1)).all()
    for content in (None, sizes):
        kept = best(scores, content, 100, 7)
        assert kept[:, :7].tolist() == [list(range(7))] * 3
    assert best(scores, sizes, 150, 7)[1].max() == 149


def test_eight_bits_still_tell_scores_apart() -> None:
    scores = torch.linspace(0, 1, 26).flip(0).unsqueeze(0)
    ranked = protected_first(scores, 1)
    step = ranked.max() / 255
    rounded = torch.round(ranked / step) * step

    assert rounded.topk(26).indices.tolist() == [list(range(26))]


@pytest.mark.parametrize("sizes", [[[1.0, 0.0, 0.0, 0.0]], None], ids=["padding", "no score"])
def test_the_protected_lead_where_nothing_else_counts(sizes: list[list[float]] | None) -> None:
    scores = torch.zeros(1, 4, dtype=torch.float16)
    known = None if sizes is None else torch.tensor(sizes)
    assert best(scores, known, 2, 1)[0, 0] == 0
    assert torch.isfinite(protected_first(scores, 1)).all()
    assert protected_first(scores, 1)[0, 0] > 0
