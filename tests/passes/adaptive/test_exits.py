from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.bundle.manifest import Postprocess
from edgekit.errors import DataError, SourceError, UsageError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.adaptive.exits import AttachExits, Laddered, check_depths
from edgekit.passes.adaptive.heads import PENALTIES, TokenHead, fit_map
from edgekit.passes.adaptive.widths import OrderUnits
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.report.metrics import cosine
from edgekit.zoo.fashion import FashionVit, fashion_cnn, fashion_vit


def attach(original: Model, *after: int) -> tuple[Model, Laddered]:
    captured, _ = prepare(original, silent)
    teacher = torch.from_numpy(run_model(captured, captured.calibration)[captured.output_names[0]])
    return captured, AttachExits(after)(original, captured, teacher)


@pytest.fixture(scope="module")
def made() -> tuple[Model, Laddered]:
    return attach(fashion_vit(), 2, 4)


def test_the_stages_compose_to_the_whole_model(made: tuple[Model, Laddered]) -> None:
    captured, ladder = made
    values = captured.held_out[0]
    for stage in ladder.stages:
        values = {**values, **stage.forward({name: values[name] for name in stage.example_inputs})}
    torch.testing.assert_close(values["logits"], captured.forward(captured.held_out[0])["logits"], rtol=1e-5, atol=1e-5)


def test_distilled_heads_agree_with_the_model_on_samples_that_they_did_not_see(made: tuple[Model, Laddered]) -> None:
    captured, ladder = made
    whole = run_model(captured, captured.held_out)["logits"].argmax(1)
    agreements = [float((run_model(head, head.held_out)["logits"].argmax(1) == whole).mean()) for head in ladder.heads]
    assert agreements[1] > 0.85 and agreements[0] > 0.75


def small() -> Model:
    torch.manual_seed(0)
    vit = fashion_vit()
    return replace(vit, module=FashionVit(depth=2).eval(), calibration=vit.calibration[:16], held_out=vit.held_out[:4])


def test_heads_that_the_module_brings_are_taken_as_they_are() -> None:
    original, head = small(), TokenHead(64, 10)
    original.module.exits = torch.nn.ModuleDict({"1": head})
    _, ladder = attach(original, 1)
    tokens = ladder.heads[0].held_out[0]
    with torch.no_grad():
        torch.testing.assert_close(ladder.heads[0].forward(tokens)["logits"], head(*tokens.values()))


def test_an_exit_has_the_models_output_so_that_it_can_stand_for_it(made: tuple[Model, Laddered]) -> None:
    captured, ladder = made
    for head in ladder.heads:
        assert [spec.name for spec in head.output_specs] == list(captured.output_names)
        assert head.output_specs[0].shape == captured.output_specs[0].shape


def test_an_encoder_that_a_pass_has_changed_before_is_cut_too() -> None:
    _, ladder = attach(OrderUnits()(small()), 1)
    assert len(ladder.stages) == 2
    assert np.isfinite(run_model(ladder.heads[0], ladder.heads[0].held_out[:4])["logits"]).all()


@pytest.mark.parametrize("after", [(), (0,), (6,), (2, 2), (4, 2)])
def test_depths_that_are_none_are_refused(after: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="allowed rising numbers from 1 to 5"):
        check_depths(after, 6)


def test_no_encoder_no_classes_and_no_samples_are_told() -> None:
    with pytest.raises(SourceError, match="no encoder"):
        AttachExits((1,))(fashion_cnn(), fashion_cnn(), torch.zeros(1, 10))
    vit = small()
    with pytest.raises(SourceError, match="neither classes nor one embedding"):
        attach(replace(vit, postprocess=None), 1)
    with pytest.raises(DataError, match="allowed 16 or more"):
        attach(replace(vit, calibration=vit.calibration[:8]), 1)


def test_an_embedding_is_mapped_onto_the_final_one_better_with_depth() -> None:
    """Of samples that the map did not see."""
    vit = fashion_vit()
    module = copy.deepcopy(vit.module)
    module.classifier = torch.nn.Identity()
    post = Postprocess(kind="embedding", output="embedding")
    embedding = replace(vit, module=module, output_names=("embedding",), postprocess=post, labels=())
    captured, ladder = attach(embedding, 3, 5)
    wanted = run_model(captured, captured.held_out)["embedding"]
    near = [cosine(wanted, run_model(head, head.held_out)["embedding"]) for head in ladder.heads]
    assert 0.75 < near[0] < near[1] and near[1] > 0.9


def test_a_map_of_few_samples_is_the_ridge_regression_of_its_penalty() -> None:
    torch.manual_seed(0)
    pooled, target = torch.randn(20, 16), torch.randn(20, 5)
    head = TokenHead(8, 5)
    fit_map(head, pooled, target)
    rows, wanted = (pooled - pooled.mean(0)).double(), (target - target.mean(0)).double()
    scale = float(torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0).mean())
    solved = [
        torch.linalg.solve(rows.T @ rows + scale * p * torch.eye(16).double(), rows.T @ wanted) for p in PENALTIES
    ]
    assert min(float((head.linear.weight.T - one).abs().max()) for one in solved) < 1e-4
    torch.testing.assert_close(head.linear(pooled).mean(0), target.mean(0), rtol=1e-4, atol=1e-4)
