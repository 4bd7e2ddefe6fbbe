from __future__ import annotations

import pytest
import torch

from edgekit.errors import InputError
from edgekit.model import Model
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.compose import chain, compose, run_through
from edgekit.passes.partition.split import split


def test_what_lies_between_stages_sees_and_changes_what_crosses(fashion: Model) -> None:
    stages = split(fashion, [find_cut(fashion, "features.3"), find_cut(fashion, "features.5")])
    seen: list[tuple[int, list[str]]] = []

    def rounded(index: int, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((index, list(values)))
        return {name: value.round() for name, value in values.items()}

    (answer,) = run_through(stages, fashion.held_out[:1], rounded)
    assert seen == [(0, ["features_3"]), (1, ["features_5"])]
    assert not torch.equal(answer["logits"], fashion.forward(fashion.held_out[0])["logits"])


def test_stages_of_different_splits_are_refused(fashion: Model) -> None:
    head, _ = split(fashion, [find_cut(fashion, "features.3")])
    _, tail = split(fashion, [find_cut(fashion, "features.5")])
    with pytest.raises(InputError, match="stage 1 gets"):
        compose([head, tail])(fashion.example_inputs)


def test_any_callable_can_be_a_stage() -> None:
    double = chain([lambda v: {"b": 2 * v["a"]}, lambda v: {"c": v["b"] + 1}], [("a",), ("b",)])
    assert double({"a": 3}) == {"c": 7}
