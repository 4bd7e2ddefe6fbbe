from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from edgekit.errors import PlanError, SourceError, UnknownNameError
from edgekit.model import Model
from edgekit.passes.partition.candidates import Layout, cut_at, cuts, find_cut


def test_cuts_are_named_after_the_modules_that_end_there(fashion: Model) -> None:
    names = [cut.name for cut in cuts(fashion)]
    assert {"features.0", "features.3", "features.5", "features", "pool"} <= set(names)
    assert len(names) == len(set(names))


def test_costs_below_grow_along_the_graph_and_end_at_the_whole(fashion: Model) -> None:
    found = cuts(fashion)
    layout = Layout.of(fashion)
    assert [cut.head_flops for cut in found] == sorted(cut.head_flops for cut in found)
    assert [cut.head_parameters for cut in found] == sorted(cut.head_parameters for cut in found)
    assert found[-1].head_flops < sum(layout.flops.values())
    assert found[-1].head_parameters + 128 * 10 + 10 == fashion.size_bytes // 4


def test_bytes_are_those_of_the_values_that_cross(fashion: Model) -> None:
    cut = find_cut(fashion, "features.5")
    assert cut.size_bytes == 4 * 48 * 7 * 7
    assert find_cut(fashion, "features.6.layers").size_bytes == 2 * cut.size_bytes


def test_an_activation_and_its_input_are_one_cut_with_the_activation_below(fashion: Model) -> None:
    assert find_cut(fashion, "features.0").crossing == ("hardtanh",)
    assert not any("conv2d" in cut.crossing for cut in cuts(fashion))


def test_values_of_long_skips_cross_together(small: Callable[[str], Model]) -> None:
    model = small("long skips")
    assert len(find_cut(model, "down3").crossing) == 3


def test_an_input_that_only_the_tail_reads_crosses(small: Callable[[str], Model]) -> None:
    assert "token" in find_cut(small("two in, two out"), "image").crossing


def test_an_output_that_is_ready_crosses_to_be_given_with_the_others(small: Callable[[str], Model]) -> None:
    model = small("two in, two out")
    early = model.graph.graph.output_node().all_input_nodes[0].name
    assert early in find_cut(model, "mix").crossing


def test_no_tuple_is_taken_apart(small: Callable[[str], Model]) -> None:
    found = cuts(small("recurrent"))
    assert found and not any("lstm" in cut.crossing for cut in found)


def test_sizes_that_no_file_can_state_are_no_cuts(small: Callable[[str], Model]) -> None:
    model = small("windowed")
    assert [cut.name for cut in cuts(model)] == ["lift", "reshape_1"]
    names = [node.name for node in model.graph.graph.nodes]
    with pytest.raises(PlanError, match="size"):
        cut_at(model, names[: names.index("linear_1") + 1])


def test_memory_written_through_views_is_never_cut_between_writes(small: Callable[[str], Model]) -> None:
    assert [cut.crossing for cut in cuts(small("writes through views"))] == [("zeros",), ("linear_2",), ("linear_3",)]


def test_shared_weights_count_once(small: Callable[[str], Model]) -> None:
    assert [cut.head_parameters for cut in cuts(small("shared weights"))] == [72, 72, 72]


def test_a_set_that_is_a_candidate_gets_its_name(fashion: Model) -> None:
    names = [node.name for node in fashion.graph.graph.nodes]
    wanted = find_cut(fashion, "features.5")
    assert cut_at(fashion, names[: names.index("conv2d_9") + 1]) == wanted


def test_any_downward_closed_set_can_be_cut(small: Callable[[str], Model]) -> None:
    model = small("two in, two out")
    cut = cut_at(model, ["token", "embedding", "mean"])
    assert cut.crossing == ("image", "mean")
    assert cut.name not in {other.name for other in cuts(model)}


def test_a_set_that_is_not_closed_names_what_is_missing(fashion: Model) -> None:
    with pytest.raises(PlanError, match=r"conv2d_1.*above"):
        cut_at(fashion, ["image", "conv2d", "hardtanh", "hardtanh_1"])


@pytest.mark.parametrize("side", ["none", "all"])
def test_a_cut_needs_work_on_both_sides(fashion: Model, side: str) -> None:
    names = ["image"] if side == "none" else [node.name for node in fashion.graph.graph.nodes]
    with pytest.raises(PlanError, match="work below it"):
        cut_at(fashion, names)


def test_names_that_are_not_there_say_which_are(fashion: Model) -> None:
    with pytest.raises(UnknownNameError, match=r"features\.5"):
        find_cut(fashion, "feature.5")
    with pytest.raises(SourceError, match="conv2d_99"):
        cut_at(fashion, ["conv2d_99"])


def test_what_has_no_graph_is_refused(fashion: Model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SourceError, match=r"trained \.onnx"):
        cuts(replace(fashion, onnx_path=tmp_path / "model.onnx"))
