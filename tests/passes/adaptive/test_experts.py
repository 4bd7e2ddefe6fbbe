from __future__ import annotations

import pytest
import torch

from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.passes.adaptive.experts import KeptExperts, TaskExperts
from edgekit.passes.adaptive.tasks import KeepTask
from edgekit.zoo.fashion import fashion_vit
from edgekit.zoo.fashion_tasks import TASKS, FashionTasks

TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))


def experts() -> TaskExperts:
    torch.manual_seed(0)
    layer = TaskExperts(channels=8, units=3, experts=4, tasks=3, chosen=2)
    layer.choose(torch.tensor([[0.4, 0.1, 0.2, 0.3], [0.0, 0.5, 0.4, 0.1], [0.3, 0.3, 0.2, 0.2]]))
    return layer


def test_each_task_keeps_the_experts_that_counted_most() -> None:
    assert experts().chosen.tolist() == [[0, 3], [1, 2], [0, 1]]


def test_only_a_tasks_own_experts_count_and_they_count_for_all() -> None:
    weights = experts().weights(TOKENS, 1)
    assert torch.equal(weights[..., [0, 3]], torch.zeros(2, 5, 2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_before_the_choice_every_expert_counts() -> None:
    layer = TaskExperts(8, 3, 4, 2, 2)
    assert (layer.weights(TOKENS, 0) > 0).all()
    with pytest.raises(UsageError, match="still uses every expert"):
        KeptExperts(layer, 0)


@pytest.mark.parametrize("task", range(3))
def test_kept_experts_answer_as_all_of_them_did(task: int) -> None:
    whole = experts()
    kept = KeptExperts(whole, task)
    torch.testing.assert_close(kept(TOKENS), whole(TOKENS, task), rtol=1e-5, atol=1e-6)
    assert sum(v.numel() for v in kept.parameters()) < 0.6 * sum(v.numel() for v in whole.parameters())


@pytest.fixture(scope="module")
def several() -> Model:
    torch.manual_seed(1)
    module = FashionTasks().eval()
    for layer in module.modules():
        if isinstance(layer, TaskExperts):
            layer.choose(torch.rand(len(TASKS), layer.experts))
    image = torch.randn(1, 1, 28, 28)
    return Model("tasks", module, {"image": image}, TASKS, dynamic={"image": {0: "batch"}})


@pytest.mark.parametrize("task", TASKS)
def test_the_task_that_is_kept_answers_as_before_and_the_rest_is_gone(several: Model, task: str) -> None:
    kept = KeepTask(task)(several)
    image = {"image": torch.randn(3, 1, 28, 28)}
    torch.testing.assert_close(kept.forward(image)[task], several.forward(image)[task], rtol=1e-5, atol=1e-5)
    assert kept.output_names == (task,)
    assert kept.size_bytes < 0.75 * several.size_bytes
    others = [name for name, _ in kept.module.named_parameters() if any(f".{t}." in name for t in TASKS if t != task)]
    assert others == []
    assert kept.postprocess is not None and kept.postprocess.output == task


def test_an_unknown_task_names_the_known_ones(several: Model) -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'colour'") as refused:
        KeepTask("colour")(several)
    assert "turn" in refused.value.hint


def test_a_model_of_one_task_has_none_to_keep() -> None:
    with pytest.raises(SourceError, match="no model of several tasks"):
        KeepTask("item")(fashion_vit())
