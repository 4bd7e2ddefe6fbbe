"""Which parts a budget keeps."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.passes.weights.budget import Costs, Scores, evenly, within
from edgekit.passes.weights.cut import cut_blocks
from edgekit.passes.weights.stacks import blocks_of, plain


def _costs(blocks: int = 3, heads: int = 4, units: int = 64) -> Costs:
    return Costs((100.0,) * blocks, (10.0,) * blocks, (heads,) * blocks, (units,) * blocks)


def _scores(seed: int, blocks: int = 3, heads: int = 4, units: int = 64) -> Scores:
    draw = np.random.default_rng(seed)
    return Scores(
        tuple(draw.normal(size=heads) for _ in range(blocks)),
        tuple(draw.normal(size=units) for _ in range(blocks)),
        np.full(blocks, np.inf),
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.95])
def test_a_budget_is_met_and_nearly_used(share: float) -> None:
    costs = _costs()
    for seed in range(20):
        for kept in (within(_scores(seed), costs, share), evenly(_scores(seed), costs, share)):
            # One step is a head or a granule of units in each of three blocks.
            assert share - 3 * 100 / costs.whole - 3 * 80 / costs.whole <= costs.share(kept) <= share + 1e-9


def test_the_best_parts_stay_whatever_their_block() -> None:
    scores = Scores(
        (np.array([9.0, 1.0]), np.array([8.0, 7.0])), (np.arange(16.0), 20 + np.arange(16.0)), np.full(2, np.inf)
    )
    kept = within(scores, _costs(2, 2, 16), 0.75)
    assert kept[1].units == tuple(range(16))
    assert kept[0].units == tuple(range(8, 16))
    assert kept[0].heads == (0,)


def test_a_layer_that_carries_nothing_goes_with_all_its_parts() -> None:
    scores = _scores(0)
    scores.layers[1] = -99.0
    kept = within(scores, _costs(), 0.5)
    assert kept[1].whole_block_goes
    assert not kept[0].whole_block_goes and not kept[2].whole_block_goes


def test_layers_that_carry_something_do_not_take_their_parts_along() -> None:
    scores = _scores(0)
    tied = Scores(tuple(5 + h for h in scores.heads), tuple(5 + u for u in scores.units), np.array([0.3, 0.2, 0.1]))
    share = _costs().share(within(tied, _costs(), 0.5))
    assert 0.3 < share <= 0.5


def test_the_whole_budget_keeps_everything() -> None:
    costs = _costs()
    assert costs.share(within(_scores(0), costs, 1.0)) == costs.share(evenly(_scores(0), costs, 1.0)) == 1.0


def test_a_budget_that_nothing_meets_names_the_nearest_that_is_met() -> None:
    for choose in (within, evenly):
        with pytest.raises(UsageError, match="cannot be met") as caught:
            choose(_scores(0), _costs(), 0.01)
        nearest = float(caught.value.hint.split()[5])
        assert _costs().share(choose(_scores(0), _costs(), nearest)) <= nearest


def test_parameters_are_counted_as_torch_has_them(small_vit: Model) -> None:
    blocks = blocks_of(plain(small_vit))
    costs = Costs.of(blocks, 17, "size")
    kept = within(_scores(3), costs, 0.5)

    def cuttable(some: tuple[object, ...]) -> int:
        layers = [
            part
            for block in some
            for part in (block.attention.query, block.attention.key, block.attention.value, block.feed_forward.expand)  # type: ignore[attr-defined]
        ]
        mixing = [p for block in some for p in (block.attention.output, block.feed_forward.contract)]  # type: ignore[attr-defined]
        return sum(v.numel() for part in layers for v in part.parameters()) + sum(m.weight.numel() for m in mixing)

    cut = cut_blocks(blocks, kept)
    assert cuttable(cut) / cuttable(blocks) == pytest.approx(costs.share(kept), abs=1e-9)


def test_flops_are_those_of_the_token_schedule(small_vit: Model) -> None:
    from edgekit.passes.tokens.statistics import watch

    _, statistics = watch(small_vit, small_vit.calibration[:1])
    costs = Costs.of(blocks_of(plain(small_vit)), statistics.shape.tokens, "flops")
    assert costs.whole == pytest.approx(statistics.shape.flops())
