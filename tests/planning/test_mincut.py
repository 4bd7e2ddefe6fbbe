from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.planning.bruteforce import assignments, brute_force, price
from edgekit.planning.closure import EmptySpaceError, least_closure
from edgekit.planning.graph import Coding, LayeredGraph, Partition, Value, Work, chain
from edgekit.planning.link import Link
from edgekit.planning.mincut import Space, cut, unlimited
from edgekit.planning.plan import Objective, Power
from edgekit.planning.random_graph import random_graph, random_links
from edgekit.planning.terms import terms, weights_of

POWER = Power(10, 2, 0.5)


def _check(graph: LayeredGraph, links: list[Link], objective: Objective, power: Power | None) -> Partition:
    """The min cut's partition costs what brute force finds and what it says itself."""
    found = unlimited(graph, links, objective, power)
    best = brute_force(graph, links, objective, power=power)
    assert best is not None
    assert found.cost == pytest.approx(best.cost, rel=1e-7, abs=1e-9)
    assert found.lower_bound <= best.cost * (1 + 1e-9)
    told = price(graph, links, found.tier_of, found.crossed, objective, power)
    for name in ("cost", "latency_ms", "energy_mj", "bytes_sent", "drop", "memory_bytes"):
        assert getattr(found, name) == pytest.approx(getattr(told, name), rel=1e-9, abs=1e-9)
    return found


def test_the_min_cut_equals_brute_force_on_random_dags() -> None:
    rng = np.random.default_rng(7)
    used = set()
    for _ in range(300):
        tiers = int(rng.integers(1, 4))
        graph, links = random_graph(rng, int(rng.integers(1, 7)), tiers), random_links(rng, tiers)
        power = Power(*rng.uniform(0, 3, 3).tolist()) if rng.random() < 0.5 else None
        objective = Objective(*rng.uniform(0, 1, 3).tolist()) if rng.random() < 0.5 else Objective()
        used.add(frozenset(_check(graph, links, objective, power).tier_of))
    # Otherwise the graphs would not be worth testing on.
    assert {frozenset({0}), frozenset({0, 1}), frozenset({0, 2}), frozenset({0, 1, 2})} <= used


@st.composite
def _problems(draw: st.DrawFn) -> tuple[LayeredGraph, list[Link]]:
    """Small whole numbers, many of them zero or equal: where ties and free nodes lie."""
    figure = st.integers(0, 6).map(float)
    tiers, nodes = draw(st.integers(2, 3)), draw(st.integers(1, 5))
    works = tuple(
        Work(f"n{index}", tuple(draw(figure) for _ in range(tiers)), draw(figure), draw(figure))
        for index in range(nodes)
    )
    values = []
    for producer in range(nodes - 1):
        consumers = draw(st.sets(st.integers(producer + 1, nodes - 1), max_size=3))
        if consumers:
            codings = tuple(Coding(1000 * draw(figure), draw(figure), 0.0) for _ in range(draw(st.integers(1, 2))))
            values.append(Value(producer, tuple(sorted(consumers)), codings))
    answers = tuple((index, 1000 * draw(figure)) for index in draw(st.sets(st.integers(0, nodes - 1), max_size=2)))
    links = [Link(8.0, draw(figure)) for _ in range(tiers - 1)]
    return LayeredGraph(works, tuple(values), answers), links


@given(_problems(), st.sampled_from([Objective(), Objective(0, 1, 0), Objective(1, 1, 0.001)]))
@settings(max_examples=150, deadline=None)
def test_the_min_cut_equals_brute_force_where_numbers_tie(
    problem: tuple[LayeredGraph, list[Link]], objective: Objective
) -> None:
    _check(*problem, objective, POWER)


def test_a_value_with_several_consumers_crosses_once() -> None:
    """One producer on the device, three readers that only the edge runs fast: 1,000 bytes, not 3,000."""
    works = (Work("source", (0.0, 0.0)), *(Work(f"reader {i}", (50.0, 1.0)) for i in range(3)))
    graph = LayeredGraph(works, (Value(0, (1, 2, 3), (Coding(1000),)),))
    found = unlimited(graph, [Link(0.1, 10)])
    assert found.tier_of == (0, 1, 1, 1)
    assert found.bytes_sent == 1000
    assert found.latency_ms == pytest.approx(80 + 10 + 3)


def test_a_round_trip_is_paid_once_and_only_where_a_link_is_used() -> None:
    graph = chain([(0, 0, 0), (5, 1, 1), (5, 1, 1), (5, 1, 1)], [0, 0, 0])
    assert unlimited(graph, [Link(10, 13), Link(10, 0)]).tier_of == (0, 0, 0, 0)
    found = unlimited(graph, [Link(10, 11), Link(10, 1)])
    assert found.tier_of == (0, 1, 1, 1)
    assert found.latency_ms == 14


def test_the_answer_comes_back_over_every_link() -> None:
    graph = chain([(0, 0, 0), (100, 50, 1)], [0], answer_bytes=1000)
    found = unlimited(graph, [Link(8, 0), Link(0.8, 0)])
    assert found.tier_of == (0, 2)
    assert found.latency_ms == pytest.approx(1 + 1 + 10)


def test_the_cheaper_coding_crosses_each_link() -> None:
    works = (Work("a", (0.0, 0.0, 0.0)), Work("b", (100.0, 100.0, 1.0)))
    graph = LayeredGraph(works, (Value(0, (1,), (Coding(10_000), Coding(1_000, encode_ms=3.0, decode_ms=2.0))),))
    found = unlimited(graph, [Link(8, 0), Link(800, 0)])
    assert [(each.link, each.coding) for each in found.crossed] == [(0, 1), (1, 0)]
    assert found.latency_ms == pytest.approx(1 + (1 + 5) + 0.1)


def test_the_source_stays_on_the_device() -> None:
    assert unlimited(chain([(100, 0), (0, 0)], [0]), [Link(1000)]).tier_of[0] == 0


def test_among_equals_nodes_stay_low() -> None:
    graph = chain([(0, 0, 0), (1, 1, 1), (1, 1, 1)], [0, 0])
    assert unlimited(graph, [Link(1000), Link(1000)]).tier_of == (0, 0, 0)


def test_bounds_on_tiers_are_kept() -> None:
    graph = chain([(0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)], [1000, 1000, 1000])
    priced, weights = terms(graph, [Link(1), Link(1)]), weights_of(Objective())
    space = Space(np.array([0, 0, 1, 0]), np.array([0, 2, 1, 2]))
    assert cut(priced, weights, space).tier_of.tolist() == [0, 0, 1, 1]
    with pytest.raises(EmptySpaceError):
        cut(priced, weights, Space(np.array([0, 2, 0, 0]), np.array([0, 2, 1, 2])))
    cheap = terms(chain([(0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)], [0, 0, 0]), [Link(1), Link(1)])
    with pytest.raises(EmptySpaceError):
        cut(cheap, weights, Space(np.array([0, 2, 0, 0]), np.array([0, 2, 1, 2])))


def test_a_large_chain_is_cut_where_a_scan_over_all_cuts_says() -> None:
    rng = np.random.default_rng(3)
    device = rng.exponential(3.0, 400)
    sizes = np.exp(rng.normal(9.0, 1.5, 399))
    times = [(float(t), float(t) / 8) for t in device]
    graph, link = chain(times, sizes.tolist(), 4000), Link(5, 12)
    found = unlimited(graph, [link])
    scan = [device[:at].sum() + device[at:].sum() / 8 + link.transfer_ms(sizes[at - 1] + 4000) + 12
            for at in range(1, 400)]  # fmt: skip
    assert found.cost == pytest.approx(min(*scan, device.sum()), rel=1e-9)
    assert found.lower_bound == pytest.approx(found.cost, rel=1e-7)


def test_figures_of_every_size_are_exact_enough() -> None:
    """Microseconds beside days: the second flow resolves what the first one rounds away."""
    graph = chain([(0, 0), (1e8, 1e8), (2e-3, 1e-3), (3e-3, 1e-3)], [1e9, 0, 0])
    assert unlimited(graph, [Link(1000, 0)]).tier_of == (0, 0, 1, 1)


def test_whole_numbers_are_solved_exactly() -> None:
    closed, error = least_closure(
        np.array([-5.0, 3.0, 1.0, -1.0]), np.array([[0, 1], [0, 2], [3, 2]]), np.zeros(0, int), np.zeros(0, int)
    )
    assert closed.tolist() == [True, True, True, True]
    assert error == 0


def test_a_closure_keeps_what_is_set() -> None:
    none = np.zeros(0, int)
    cost, implications = np.array([1.0, -3.0]), np.array([[0, 1]])
    assert least_closure(cost, implications, none, none)[0].tolist() == [False, True]
    assert least_closure(cost, implications, np.array([0]), none)[0].tolist() == [True, True]
    assert least_closure(cost, implications, none, np.array([1]))[0].tolist() == [False, False]
    with pytest.raises(EmptySpaceError):
        least_closure(cost, implications, np.array([0]), np.array([1]))


def test_brute_force_looks_at_every_order_that_never_goes_back_down() -> None:
    graph = chain([(1, 1, 1)] * 3, [1, 1])
    assert list(assignments(graph)) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (0, 2, 2)]


@pytest.mark.parametrize(("works", "values", "answers"), [
    ((), (), ()),
    ((Work("a", (1.0,)), Work("b", (1.0, 2.0))), (), ()),
    ((Work("a", (-1.0,)),), (), ()),
    ((Work("a", (float("inf"),)),), (), ()),
    ((Work("a", (1.0,)), Work("b", (1.0,))), (Value(1, (0,), (Coding(1),)),), ()),
    ((Work("a", (1.0,)), Work("b", (1.0,))), (Value(0, (), (Coding(1),)),), ()),
    ((Work("a", (1.0,)), Work("b", (1.0,))), (Value(0, (2,), (Coding(1),)),), ()),
    ((Work("a", (1.0,)), Work("b", (1.0,))), (Value(0, (1,), ()),), ()),
    ((Work("a", (1.0,)), Work("b", (1.0,))), (Value(0, (1,), (Coding(1, drop=-1.0),)),), ()),
    ((Work("a", (1.0,)),), (), ((1, 5.0),)),
])  # fmt: skip
def test_what_is_no_graph_is_refused(
    works: tuple[Work, ...], values: tuple[Value, ...], answers: tuple[tuple[int, float], ...]
) -> None:
    with pytest.raises(UsageError, match="allowed"):
        LayeredGraph(works, values, answers)


def test_links_must_fit_the_tiers_and_weights_be_positive() -> None:
    graph = chain([(1, 1)], [])
    with pytest.raises(UsageError, match="2 links between 2 tiers"):
        unlimited(graph, [Link(1), Link(1)])
    with pytest.raises(UsageError, match="weights"):
        unlimited(graph, [Link(1)], Objective(latency=-1))
