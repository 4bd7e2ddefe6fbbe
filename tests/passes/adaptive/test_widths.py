from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.adaptive.order import by_unit, channels, energy
from edgekit.passes.adaptive.widths import OrderUnits, SlimEncoder
from edgekit.zoo.fashion import fashion_cnn, fashion_vit


@pytest.fixture(scope="module")
def vit() -> Model:
    return fashion_vit()


@pytest.fixture(scope="module")
def ordered(vit: Model) -> Model:
    return OrderUnits()(vit)


def accuracy(model: Model) -> float:
    return float((run_model(model, model.held_out)["logits"].argmax(1) == np.asarray(model.labels)).mean())


def test_what_a_channel_gives_is_its_mean_square_times_its_column() -> None:
    given, weight = torch.tensor([1.0, 4.0]), torch.tensor([[3.0, 1.0], [4.0, 0.0]])
    assert energy(given, weight).tolist() == [25.0, 4.0]


def test_units_of_several_channels_are_sorted_together() -> None:
    order = by_unit(torch.tensor([1.0, 1.0, 5.0, 0.0, 2.0, 2.5]), 2)
    assert order.tolist() == [2, 1, 0] or order.tolist() == [1, 2, 0]
    assert channels(torch.tensor([2, 0]), 2).tolist() == [4, 5, 0, 1]


def test_sorting_leaves_the_answers_and_the_callers_model_alone(vit: Model, ordered: Model) -> None:
    torch.testing.assert_close(
        ordered.forward(vit.held_out[0])["logits"], vit.forward(vit.held_out[0])["logits"], rtol=1e-5, atol=1e-5
    )
    assert not hasattr(vit.module.blocks[0], "run")  # type: ignore[union-attr, index]


def test_what_stays_after_sorting_is_worth_more_than_what_stood_first(vit: Model, ordered: Model) -> None:
    assert accuracy(SlimEncoder(0.5)(ordered)) > accuracy(SlimEncoder(0.5)(vit)) + 0.1


def test_a_narrower_encoder_is_smaller_and_says_what_it_kept(ordered: Model) -> None:
    sizes = [SlimEncoder(width)(ordered).size_bytes for width in (1.0, 0.75, 0.5)]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.6 * sizes[0]
    assert "2 of 4 heads, 64 of 128" in SlimEncoder(0.5)(ordered).history[-1].detail


def test_masks_reach_the_narrow_blocks() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
    words = torch.randint(1, 50, (1, 7))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    module = BertModel(config, add_pooling_layer=False).eval()
    model = Model("bert", module, {"input_ids": words, "attention_mask": mask}, ("hidden",))
    slim = SlimEncoder(0.5)(model)
    padded = words.clone()
    padded[:, 4:] = 3
    answers = [slim.forward({"input_ids": given, "attention_mask": mask})["hidden"][:, :4] for given in (words, padded)]
    torch.testing.assert_close(answers[0], answers[1])


def test_a_model_without_an_encoder_cannot_be_narrowed() -> None:
    with pytest.raises(SourceError, match="no encoder of a known family"):
        SlimEncoder(0.5)(fashion_cnn())


def test_a_narrow_encoder_is_not_narrowed_again(ordered: Model) -> None:
    with pytest.raises(SourceError, match="narrow already"):
        SlimEncoder(0.5)(SlimEncoder(0.75)(ordered))


def test_a_width_of_nothing_is_refused_before_work(vit: Model) -> None:
    with pytest.raises(UsageError, match="allowed above 0"):
        SlimEncoder(0.0)(vit)
