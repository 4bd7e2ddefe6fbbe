"""How far a student's outputs are from what is wanted, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.errors import UnknownNameError

Loss = Literal["distillation", "labels", "mse", "cauchy-schwarz"]
LOSSES: tuple[str, ...] = get_args(Loss)


def distances(
    loss: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor | None,
    classifies: bool,
    inputs: Tensor | None = None,
) -> Tensor:
    """[B] of outputs [B, ...]. `distillation`: the Kullback-Leibler divergence of the student's classes from the
    teacher's, or the normalised squared error where the model is no classifier. `labels`: half that divergence, half
    the cross-entropy with int64 [B]. `mse`: that error always. `cauchy-schwarz`: the divergence of outputs given
    `inputs` [B, ...] (divergence.py), which is of the batch and the same for each sample. Raises UnknownNameError.
    """
    if loss not in LOSSES:
        raise UnknownNameError("loss", loss, LOSSES)
    if loss == "labels":
        if labels is None:
            raise ValueError("no labels")
        truth = functional.cross_entropy(student[0], labels, reduction="none")
        return 0.5 * truth + 0.5 * divergence(student[0], teacher[0])
    if loss == "cauchy-schwarz":
        from edgekit.passes.bottleneck.divergence import conditional_divergence

        if inputs is None:
            raise ValueError("no inputs")
        total = sum(
            conditional_divergence(inputs.flatten(1), want.flatten(1), got.flatten(1))
            for got, want in zip(student, teacher, strict=True)
        )
        assert isinstance(total, Tensor)
        return total.expand(len(student[0]))
    if loss == "distillation" and classifies:
        return divergence(student[0], teacher[0])
    return squared_errors(student, teacher)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher | student) of logits [B, classes]: [B], nats (Hinton et al., arXiv:1503.02531, at temperature 1)."""
    got, want = student.log_softmax(1), teacher.log_softmax(1)
    return functional.kl_div(got, want, log_target=True, reduction="none").sum(1)


def squared_errors(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """[B]: the mean over outputs [B, ...] of the squared error in units of the teacher's variance in this batch."""
    found = []
    for got, want in zip(student, teacher, strict=True):
        if not want.is_floating_point():
            continue
        spread = (want - want.mean(0)).square().mean().clamp_min(1e-12)
        found.append((got - want).square().flatten(1).mean(1) / spread)
    return torch.stack(found).mean(0)
