"""One knob alone: which arcs it leaves, and what a configuration turns."""

from __future__ import annotations

import pytest

from edgekit.search.corners import TOKENS, alone, optimistic, turns
from edgekit.search.families import DEPTH, WIDTH
from edgekit.search.lattice import Arc, Lattice, Step
from edgekit.search.solve import best_path
from edgekit.search.space import GONE_CHOICE, Configuration, Family

PLAIN, MERGING = Family("onnx", "int8"), Family("onnx", "int8", "merge")
WHOLE = ((4, 16), (4, 16))
FULL = Arc(1, 1, "|4", 1e-4, 4.0, 40.0, ("int8", "onnx int8"), (WIDTH, 0.0))
NARROW = Arc(1, 1, "|2", 1e-4, 2.0, 20.0, ("int8", "onnx int8"), (WIDTH, 2e-3))
GONE = Arc(1, -1, GONE_CHOICE, further=(DEPTH, 3e-3))
BACK = Arc(-1, 1, GONE_CHOICE, further=(DEPTH, 0.0))
LATTICE = Lattice(
    (Step("block 1 attention", (FULL, NARROW, GONE)), Step("block 1 feed-forward", (FULL, NARROW, BACK))), 1
)


@pytest.mark.parametrize(
    ("knob", "choices", "latency"),
    [(DEPTH, (GONE_CHOICE, GONE_CHOICE), 0.0), (WIDTH, ("|2", "|2"), 4.0)],
)
def test_no_other_knob_moves(knob: str, choices: tuple[str, ...], latency: float) -> None:
    part = alone(PLAIN, LATTICE, knob)
    assert part is not None
    solved = best_path(part, {}, "latency_ms", {})
    assert solved is not None
    assert solved.path.choices == choices
    assert solved.figures[1] == latency


def test_tokens_leave_heads_units_and_blocks_alone() -> None:
    part = alone(MERGING, LATTICE, TOKENS)
    assert part is not None
    assert {arc.choice for _, arc in part.arcs} == {"|4"}


@pytest.mark.parametrize(("family", "knob"), [(PLAIN, TOKENS), (MERGING, DEPTH), (MERGING, WIDTH)])
def test_a_family_without_the_knob_has_none(family: Family, knob: str) -> None:
    assert alone(family, LATTICE, knob) is None


def test_errors_count_as_if_alone_and_latencies_as_found() -> None:
    found = optimistic({DEPTH: 2.3, WIDTH: 0.7, "int8": 1.4, "onnx int8": 1.2}, LATTICE)
    assert found == {DEPTH: 1.0, WIDTH: 0.7, "int8": 1.0, "onnx int8": 1.2}


@pytest.mark.parametrize(
    ("keep", "shape", "knob"),
    [
        (None, None, ""),
        ((9, 5), None, TOKENS),
        (None, ((4, 16), (0, 0)), DEPTH),
        (None, ((4, 8), (4, 16)), WIDTH),
        (None, ((4, 8), (0, 0)), ""),
        ((9, 5), ((4, 8), (4, 16)), ""),
    ],
)
def test_what_a_configuration_turns_alone(
    keep: tuple[int, ...] | None, shape: tuple[tuple[int, int], ...] | None, knob: str
) -> None:
    assert turns(Configuration(MERGING, keep, (), shape), WHOLE) == knob
