"""BLEU of token ids beside counts of n-grams in dictionaries, written down from the definition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from edgekit.runtimes.kernels.token_bleu import BLEU, token_bleu

# A float32 score in [0, 1] of four quotients, two roots (or four logarithms and an exp) and an exponential: 16 ulps.
CLOSE = partial(pytest.approx, rel=16 * 2.0**-24, abs=1e-30)


def grams(tokens: Sequence[int], size: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1))


def plain_bleu(said: Sequence[int], truths: Sequence[Sequence[int]], smooth: bool) -> float:
    score = 1.0
    for size in range(1, 5):
        counts = grams(said, size)
        most: Counter[tuple[int, ...]] = Counter()
        for truth in truths:
            most |= grams(truth, size)
        added = 1 if smooth and size > 1 else 0
        matched, total = (counts & most).total() + added, counts.total() + added
        if not matched:
            return 0.0
        score *= (matched / total) ** 0.25
    nearest = min((abs(len(truth) - len(said)), len(truth)) for truth in truths)[1]
    return score * min(1.0, math.exp(1 - nearest / len(said)))


def padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.int32).reshape(-1, width)


def batch(
    items: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], filler: int = 0, more: int = 0
) -> tuple[torch.Tensor, ...]:
    """Items with fewer references than others get some of length -1; `more` columns of `filler` beyond the longest."""
    count = max(len(truths) for _, truths in items)
    long = max(len(said) for said, _ in items) + more
    wide = max(len(truth) for _, truths in items for truth in truths) + more
    rows = [[*truths, *[()] * (count - len(truths))] for _, truths in items]
    sizes = [[*map(len, truths), *[-1] * (count - len(truths))] for _, truths in items]
    return (
        padded([said for said, _ in items], long, filler),
        torch.tensor([len(said) for said, _ in items], dtype=torch.int32),
        torch.stack([padded(truths, wide, filler) for truths in rows]),
        torch.tensor(sizes, dtype=torch.int32),
    )


def scores(arguments: tuple[torch.Tensor, ...], smooth: bool) -> list[float]:
    """In the interpreter: `token_bleu` takes the reference off the GPU. Both have to be right."""
    got = BLEU.launch(*arguments, smooth)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.float32
    assert token_bleu(*arguments, smooth).tolist() == CLOSE(got.tolist())
    return [float(one) for one in got]


def random_items(count: int, words: int, seed: int) -> list[tuple[list[int], list[list[int]]]]:
    generator = torch.Generator().manual_seed(seed)

    def sentence(longest: int) -> list[int]:
        size = int(torch.randint(longest + 1, (1,), generator=generator))
        return [int(word) for word in torch.randint(words, (size,), generator=generator)]

    return [(sentence(20), [sentence(24) for _ in range(1 + item % 3)]) for item in range(count)]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_scores_are_those_of_counted_dictionaries(words: int, smooth: bool) -> None:
    items = random_items(9, words, seed=words)
    wanted = [plain_bleu(*item, smooth) for item in items]
    assert scores(batch(items), smooth) == CLOSE(wanted)
    assert any(0 < one < 1 for one in wanted)


def test_more_than_a_tile_in_both_directions() -> None:
    generator = torch.Generator().manual_seed(5)
    said = torch.randint(3, (75,), generator=generator).tolist()
    truths = [torch.randint(3, (size,), generator=generator).tolist() for size in (140, 66)]
    assert scores(batch([(said, truths)]), False) == CLOSE([plain_bleu(said, truths, False)])


def test_the_same_word_said_too_often_is_clipped() -> None:
    """Papineni et al., section 2.1: seven times `the`, of which the reference has two."""
    the, cat, sat, on, mat = range(5)
    item = ([the] * 7, [[the, cat, sat, on, the, mat]])
    assert scores(batch([item]), False) == [0.0]
    assert scores(batch([item]), True) == CLOSE([(2 / 7 * 1 / 7 * 1 / 6 * 1 / 5) ** 0.25])


@pytest.mark.parametrize(
    ("sizes", "nearest"),
    [((8, 12), 8), ((12, 8), 8), ((9, 12), 9), ((7, 11), 11), ((30,), 30), ((10, 30), 10)],
)
def test_the_nearest_length_counts_and_of_two_the_shorter(sizes: tuple[int, ...], nearest: int) -> None:
    said = list(range(10))
    (score,) = scores(batch([(said, [list(range(size)) for size in sizes])]), False)
    precisions = [min(1.0, (max(sizes) - size + 1) / (10 - size + 1)) for size in range(1, 5)]
    assert score == CLOSE(math.prod(precisions) ** 0.25 * min(1.0, math.exp(1 - nearest / 10)))


def test_a_copy_of_any_reference_is_perfect() -> None:
    said = [5, 1, 5, 1, 5, 9, 2]
    assert scores(batch([(said, [[1, 2, 3, 4, 5, 6, 7], said])]), False) == [1.0]


@pytest.mark.parametrize("filler", [0, 1, -100])
def test_what_lies_beyond_a_length_does_not_count(filler: int) -> None:
    items = random_items(4, 2, seed=9)
    assert scores(batch(items, filler, more=5), True) == scores(batch(items), True)


def test_the_order_of_references_does_not_count() -> None:
    items = [(said, truths) for said, truths in random_items(6, 3, seed=4) if len(truths) > 1]
    turned = [(said, truths[::-1]) for said, truths in items]
    assert scores(batch(items), True) == scores(batch(turned), True)


def test_nothing_said_and_nothing_to_say_score_zero() -> None:
    items: list[tuple[list[int], list[list[int]]]] = [([], [[1, 2]]), ([1, 2, 3, 4], [[]]), ([], [[]])]
    for smooth in (False, True):
        assert scores(batch(items, more=1), smooth) == [0.0, 0.0, 0.0]
