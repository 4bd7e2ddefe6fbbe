"""Recovery from inputs alone: resumable, seeded, and told from what it cannot use."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.batches import stacked
from edgekit.distillation import Recovery, class_divergence, distill, feature_distance, train
from edgekit.errors import DataError, NumericsError
from edgekit.model import Model, Sample
from edgekit.unfinished_training import FACTS

RECOVERY = Recovery(steps=40, batch=8, learning_rate=1e-2)


def _model(seed: int) -> Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    torch.manual_seed(9)
    samples: tuple[Sample, ...] = tuple({"input": torch.randn(1, 6)} for _ in range(40))
    return Model("net", module, dict(samples[0]), ("output",), dynamic={"input": {0: "batch"}}, calibration=samples)


def _gap(teacher: Model, student: Model) -> float:
    return sum(
        float((teacher.forward(s)["output"] - student.forward(s)["output"]).square().sum()) for s in teacher.calibration
    )


def _weights(model: Model) -> list[torch.Tensor]:
    return [value.clone() for value in model.module.state_dict().values()]


def test_a_student_learns_its_teacher_without_labels() -> None:
    teacher, student = _model(0), _model(1)
    before = _gap(teacher, student)
    done = distill(teacher, student, teacher.calibration, replace(RECOVERY, steps=150))
    assert _gap(teacher, student) < 0.1 * before
    assert done.steps == 150 and done.cpu_s > 0


def test_inner_states_are_matched_where_asked() -> None:
    teacher = _model(0)
    inner = {}
    for weight in (0.0, 10.0):
        student = _model(1)
        distill(teacher, student, teacher.calibration, replace(RECOVERY, features=weight), features=[("1", "1")])
        rows = torch.cat([s["input"] for s in teacher.calibration])
        inner[weight] = float((teacher.module[:2](rows) - student.module[:2](rows)).square().mean())  # type: ignore[index]
    assert inner[10.0] < 0.5 * inner[0.0]


def test_only_what_is_asked_for_is_trained() -> None:
    teacher, student = _model(0), _model(1)
    first = student.module[0].weight.clone()  # type: ignore[index]
    distill(teacher, student, teacher.calibration, RECOVERY, trained="2")
    assert torch.equal(student.module[0].weight, first)  # type: ignore[index]
    assert student.module[0].weight.requires_grad  # type: ignore[index]
    assert torch.equal(_model(0).module[0].weight, teacher.module[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("at", [300, 700])
def test_an_interrupted_recovery_ends_in_the_weights_of_an_unbroken_one(at: int, tmp_path: Path) -> None:
    teacher, unbroken, student = _model(0), _model(1), _model(1)
    distill(teacher, unbroken, teacher.calibration, RECOVERY)

    def interrupt(step: str, done: int, total: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, student, teacher.calibration, RECOVERY, checkpoint=tmp_path, progress=interrupt)
    seen: list[int] = []
    resumed = _model(1)
    done = distill(
        teacher, resumed, teacher.calibration, RECOVERY, checkpoint=tmp_path, progress=lambda s, d, t: seen.append(d)
    )
    assert seen[0] >= at and seen[-1] == 1000
    assert done.steps == 40
    assert all(torch.equal(a, b) for a, b in zip(_weights(resumed), _weights(unbroken), strict=True))


def test_a_finished_recovery_is_not_done_again(tmp_path: Path) -> None:
    teacher, student, again = _model(0), _model(1), _model(1)
    distill(teacher, student, teacher.calibration, RECOVERY, checkpoint=tmp_path)
    steps: list[int] = []
    distill(
        teacher, again, teacher.calibration, RECOVERY, checkpoint=tmp_path, progress=lambda s, d, t: steps.append(d)
    )
    assert steps == [1000]
    assert all(torch.equal(a, b) for a, b in zip(_weights(again), _weights(student), strict=True))


def test_minutes_bound_the_time_and_what_was_spent_counts(tmp_path: Path) -> None:
    teacher, student = _model(0), _model(1)
    timed = replace(RECOVERY, steps=None, minutes=0.005)
    done = distill(teacher, student, teacher.calibration, timed, checkpoint=tmp_path)
    assert done.steps > 0 and done.seconds >= 0.3
    assert distill(teacher, _model(1), teacher.calibration, timed, checkpoint=tmp_path).steps == done.steps


def test_a_checkpoint_of_other_options_or_damaged_is_refused(tmp_path: Path) -> None:
    teacher = _model(0)
    distill(teacher, _model(1), teacher.calibration, RECOVERY, checkpoint=tmp_path)
    with pytest.raises(DataError, match="other options"):
        distill(teacher, _model(1), teacher.calibration, replace(RECOVERY, seed=1), checkpoint=tmp_path)
    with pytest.raises(DataError, match="other options"):
        distill(_model(2), _model(1), teacher.calibration, RECOVERY, checkpoint=tmp_path)
    (tmp_path / FACTS).write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="does not read"):
        distill(teacher, _model(1), teacher.calibration, RECOVERY, checkpoint=tmp_path)


def test_nothing_to_learn_from_and_infinite_losses_are_told() -> None:
    teacher = _model(0)
    with pytest.raises(DataError, match="nothing to recover from"):
        distill(teacher, _model(1), (), RECOVERY)
    student = _model(1)
    group = [{"params": list(student.module.parameters())}]
    with pytest.raises(NumericsError, match="NaN or infinite"):
        train(student, group, lambda b, g: torch.tensor(torch.inf), teacher.calibration, RECOVERY, name="x")


def test_distances() -> None:
    wanted = torch.randn(3, 4, 5)
    assert float(feature_distance(wanted, wanted)) == 0
    mean = wanted.mean((0, 1)).expand_as(wanted)
    assert float(feature_distance(wanted, mean)) == pytest.approx(1.0, abs=1e-4)
    mask = torch.ones(3, 4)
    mask[:, 3] = 0
    spoiled = torch.cat([wanted[:, :3], torch.full((3, 1, 5), 99.0)], 1)
    assert float(feature_distance(wanted, spoiled, mask)) == 0
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(class_divergence(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(class_divergence(logits, -logits)) > 0.1


def test_batches_lose_the_padding_that_all_share() -> None:
    rows = [
        {"input_ids": torch.ones(1, 8, dtype=torch.long), "attention_mask": (torch.arange(8) < n).long()[None]}
        for n in (2, 5, 3)
    ]
    model = Model("t", nn.Identity(), dict(rows[0]), dynamic={n: {0: "batch", 1: "sequence"} for n in rows[0]})
    (batch,) = stacked(rows, model)
    assert batch["input_ids"].shape == (3, 5)
    static = replace(model, dynamic={n: {0: "batch"} for n in rows[0]})
    assert stacked(rows, static)[0]["input_ids"].shape == (3, 8)
    assert len(stacked(rows, copy.copy(replace(model, dynamic={})))) == 3
