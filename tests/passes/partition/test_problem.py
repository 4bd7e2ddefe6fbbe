from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.costs import segments
from edgekit.devices.device import load_device
from edgekit.devices.latency import predict
from edgekit.errors import PlanError
from edgekit.model import Model
from edgekit.passes.partition.candidates import cuts, find_cut
from edgekit.passes.partition.problem import Compression, Problem, Tier, planning_problem
from edgekit.planning.bruteforce import brute_force
from edgekit.planning.link import Link
from edgekit.planning.mincut import unlimited

from .conftest import SMALL  # type: ignore[import-not-found]

PI, SERVER = load_device("raspberry-pi-4"), load_device("x86-server")


def problem(model: Model, *compressions: Compression) -> Problem:
    return planning_problem(model, (Tier(PI, threads=1), Tier(SERVER)), compressions or (Compression(),))


def test_segments_add_up_to_the_whole_models_prediction(fashion: Model) -> None:
    works = problem(fashion).graph.works
    assert sum(work.latency_ms[0] for work in works) == pytest.approx(
        predict(segments(fashion, "fp32"), PI, next(iter(PI.formats)), 1).latency_ms
    )
    assert sum(work.memory_bytes for work in works) == fashion.size_bytes


def test_precision_and_format_of_a_tier_count(fashion: Model) -> None:
    tiers = (Tier(PI, "onnx", "int8-dynamic", 1), Tier(SERVER, "onnx", threads=2))
    works = planning_problem(fashion, tiers).graph.works
    for index, (device, precision, threads) in enumerate([(PI, "int8-dynamic", 1), (SERVER, "fp32", 2)]):
        whole = predict(segments(fashion, precision), device, "onnx", threads).latency_ms
        assert sum(work.latency_ms[index] for work in works) == pytest.approx(whole)


@pytest.mark.parametrize("name", SMALL)
def test_every_prefix_of_the_segments_can_be_cut(small: Callable[[str], Model], name: str) -> None:
    posed = problem(small(name))
    assert all(value.producer < min(value.consumers) for value in posed.graph.values)
    assert len(posed.members) > 2
    for count in range(2, len(posed.members)):
        assert posed.cut(range(count)).crossing


def test_both_ends_of_a_value_that_cannot_cross_are_one_node(small: Callable[[str], Model]) -> None:
    model = small("windowed")
    posed = problem(model)
    assert posed.members == (("words",), ("linear", "relu"), ("linear_1", "relu_1", "linear_2", "mean"))
    whole = predict(segments(model, "fp32"), PI, next(iter(PI.formats)), 1).latency_ms
    assert sum(work.latency_ms[0] for work in posed.graph.works) == pytest.approx(whole)


def test_a_value_behind_a_view_or_asked_for_its_size_crosses_once(fashion: Model) -> None:
    posed = problem(fashion, Compression(inputs=8.0))
    inputs = [value for value in posed.graph.values if value.producer == 0]
    assert [value.consumers for value in inputs] == [(1,)]
    assert inputs[0].codings[0].size_bytes == 28 * 28 / 8
    sizes = [value.codings[0].size_bytes for value in posed.graph.values]
    assert sizes[-1] == 128


def test_a_won_partition_is_a_cut_that_can_be_split(small: Callable[[str], Model]) -> None:
    model = small("long skips")
    posed = problem(model, Compression(features=200.0))
    link = (Link(0.1, 0.01),)
    best, plain = unlimited(posed.graph, link), brute_force(posed.graph, link)
    assert best.cost == pytest.approx(plain.cost, rel=1e-4)
    with pytest.raises(PlanError, match="leaves the model whole"):
        posed.cut([0])
    assert posed.cuts([0] * len(posed.members)) == ()
    tiers = [0 if index < 4 else 1 for index in range(len(posed.members))]
    assert len(posed.cuts(tiers)) == 1


def test_a_candidate_keeps_its_name(fashion: Model) -> None:
    posed = problem(fashion)
    named = {cut.name for cut in cuts(fashion)}
    found = {posed.cut(range(count)).name for count in range(2, len(posed.members))}
    assert find_cut(fashion, "features.5").name in found <= named
