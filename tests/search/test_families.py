"""Lattices: costs of tokens, widths and precisions, and configurations there and back."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.passes.tokens.schedule import Shape as TokenShape
from edgekit.search.anatomy import Group
from edgekit.search.families import Tables, configuration_of, lattice_of, path_of
from edgekit.search.lattice import Lattice
from edgekit.search.solve import best_path, front
from edgekit.search.space import Configuration, Family
from edgekit.search.tables import Measured, PrecisionTable, TokenTable, WidthTable
from edgekit.search.token_probe import levels_of

SHAPE = TokenShape(17, 1, 8, ((8, 8), (8, 8)), (16, 16))
LEVELS = levels_of(SHAPE)
PARTS = ("block 0 attention", "block 0 feed-forward", "block 1 attention", "block 1 feed-forward")
NAMES = ("stem", *PARTS, "head")
WHOLE = ((4, 16), (4, 16))
FAMILY = Family("onnx", "int8", "merge")


def token_table(fewest: float = 0.5) -> TokenTable:
    rows = tuple(tuple(slope * (17 - level) for level in LEVELS) for slope in (3e-3, 1e-3))
    return TokenTable(SHAPE, fewest, LEVELS, rows, (), ())


def tables(tokens: TokenTable | None = None) -> Tables:
    tokens = tokens or token_table()
    ladder = ((17, 17), (9, 9), (9, 5))

    def latency(factor: float) -> tuple[dict[str, float], ...]:
        rows = []
        for keep in ladder:
            row = {"stem": factor, "head": factor}
            for block, (before, after) in enumerate(((17, keep[0]), (keep[0], keep[1]))):
                row[f"block {block} attention"] = factor * (before + 0.1 * before**2)
                row[f"block {block} feed-forward"] = factor * 2 * after
                row[f"block {block} tokens"] = factor * (0.5 + (0.2 * before if after < before else 0.0))
            rows.append(row)
        return tuple(rows)

    fast, slow = latency(0.5), latency(1.0)
    half = {name: value / 2 for name, value in fast[0].items()}
    widths = WidthTable(
        WHOLE,
        ({4: 0.0, 2: 1e-3},) * 2,
        ({16: 0.0, 8: 2e-3},) * 2,
        (np.inf, 5e-2),
        (),
        (),
    )
    return Tables(
        groups=tuple(Group(name, (name,), 100) for name in NAMES),
        precision=PrecisionTable(dict.fromkeys(NAMES, 1e-4), Measured(6e-4, 0.1)),
        tokens=tokens,
        widths=widths,
        ladder=ladder,
        latency={"int8": fast, "fp32": slow},
        whole={"int8": fast[0], "fp32": slow[0]},
        narrower={"int8": half, "fp32": {name: 2 * value for name, value in half.items()}},
        variant=Measured(0.0, 0.0),
        bits=8,
    )


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return lattice_of(FAMILY, tables(), 500.0)


def figures(lattice: Lattice, configuration: Configuration) -> tuple[float, float, float]:
    path = path_of(lattice, configuration, tables())
    assert path is not None
    return (
        sum(arc.error + arc.further[1] for arc in path.arcs),
        sum(arc.latency_ms for arc in path.arcs),
        sum(arc.size_bytes for arc in path.arcs),
    )


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(FAMILY),
        Configuration(FAMILY, (9, 5)),
        Configuration(FAMILY, (17, 9), ("stem", "block 1 attention")),
        Configuration(FAMILY, (9, 9), (), ((4, 16), (0, 0))),
        Configuration(FAMILY, None, ("head",), ((2, 16), (4, 8))),
    ],
)
def test_configurations_are_paths_and_back(lattice: Lattice, configuration: Configuration) -> None:
    path = path_of(lattice, configuration, tables())
    assert path is not None
    assert configuration_of(FAMILY, lattice, path, tables()) == configuration
    assert Configuration.from_json(configuration.to_json()) == configuration


def test_schedules_between_the_levels_have_no_path(lattice: Lattice) -> None:
    assert path_of(lattice, Configuration(FAMILY, (16, 5)), tables()) is None


def test_a_cascade_costs_what_its_counts_cost_where_they_are_reached(lattice: Lattice) -> None:
    whole, cascade = (figures(lattice, Configuration(FAMILY, keep)) for keep in (None, (9, 5)))
    assert cascade[0] - whole[0] == pytest.approx(3e-3 * (17 - 9) + 1e-3 * (9 - 5))


def test_fewer_tokens_save_what_the_blocks_behind_them_cost(lattice: Lattice) -> None:
    whole, halved = (figures(lattice, Configuration(FAMILY, keep)) for keep in (None, (9, 9)))
    attention = 0.5 * ((17 + 28.9) - (9 + 8.1))
    feed_forward = 0.5 * 2 * 2 * (17 - 9)
    reducing = 1.0 * 0.2 * 17
    assert whole[1] - halved[1] == pytest.approx(attention + feed_forward - reducing, rel=1e-6)


def test_a_layer_in_float_costs_its_time_and_weights_and_no_error(lattice: Lattice) -> None:
    rounded, kept = (figures(lattice, Configuration(FAMILY, None, names)) for names in ((), ("head",)))
    assert rounded[0] - kept[0] == pytest.approx(1e-4)
    assert kept[1] - rounded[1] == pytest.approx(0.5)
    assert kept[2] - rounded[2] == 300


def test_a_block_that_goes_takes_its_time_and_weights_along(lattice: Lattice) -> None:
    whole, without = (figures(lattice, Configuration(FAMILY, None, (), shape)) for shape in (None, (WHOLE[0], (0, 0))))
    assert whole[2] - without[2] == 200
    assert without[0] - whole[0] == pytest.approx(5e-2 - 2e-4)
    assert whole[1] - without[1] == pytest.approx(0.5 * (17 + 28.9) + 0.5 * 2 * 17 + 0.5 * 0.5)


def test_the_first_block_never_goes(lattice: Lattice) -> None:
    assert path_of(lattice, Configuration(FAMILY, None, (), ((0, 0), WHOLE[1])), tables()) is None


def test_narrower_parts_cost_in_proportion(lattice: Lattice) -> None:
    whole, narrower = (figures(lattice, Configuration(FAMILY, None, (), shape)) for shape in (None, ((4, 16), (4, 8))))
    assert whole[2] - narrower[2] == 50
    assert narrower[0] - whole[0] == pytest.approx(2e-3)
    assert whole[1] - narrower[1] == pytest.approx((0.5 * 2 * 17 + 0.25) / 2)


def test_no_step_takes_more_tokens_than_the_method_can() -> None:
    merging, free = token_table(0.5), token_table(0.0)
    assert merging.allows(17, 9)
    assert not merging.allows(17, 5)
    assert free.allows(17, 5)
    assert not free.allows(5, 9)


def test_every_step_of_a_solution_takes_no_more_than_the_method_can(lattice: Lattice) -> None:
    for solved in front(lattice, {}, {}, 8):
        keep = configuration_of(FAMILY, lattice, solved.path, tables()).keep or (17, 17)
        for before, after in zip((17, *keep), keep, strict=False):
            assert token_table().allows(before, after)


def test_limits_on_size_leave_fewer_weights(lattice: Lattice) -> None:
    free = best_path(lattice, {}, "error", {})
    tight = best_path(lattice, {}, "error", {"size_bytes": 1000.0})
    assert free is not None
    assert tight is not None
    assert free.figures[2] > 1000 >= tight.figures[2]
    assert tight.figures[0] > free.figures[0]


def test_the_blocks_that_bear_it_best_get_narrower_first() -> None:
    whole = ((4, 8), (4, 8), (4, 8))
    table = WidthTable(
        whole,
        heads=({4: 0.0, 2: 0.3}, {4: 0.0, 2: 0.1}, {4: 0.0, 2: 0.2}),
        units=({8: 0.0, 4: 0.1},) * 3,
        gone=(float("inf"), 0.9, 0.8),
        probes=(),
    )
    assert table.half == ((2, 4),) * 3
    assert table.with_cheapest(((2, 8),) * 3, 2) == ((4, 8), (2, 8), (2, 8))
    assert table.with_cheapest(((0, 0),) * 3, 1) == ((4, 8), (4, 8), (0, 0))
    assert table.cost(((2, 4), (4, 8), (0, 0))) == pytest.approx(1.2)
