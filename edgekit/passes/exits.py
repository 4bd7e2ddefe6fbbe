"""An early exit: a small classifier on what the head gives, so that easy samples never leave the device.

Pooled features, one linear layer, trained by distillation from the model's own answers (Hinton et al. 2015,
arXiv:1503.02531, section 2, at temperature 1): no labels are needed, and the exit learns to agree with the model
rather than with the truth. Exits at intermediate layers: Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import DataError
from edgekit.model import Model, Sample
from edgekit.passes.capture import Capture
from edgekit.progress import Progress, silent

MIN_SAMPLES = 16


class PooledClassifier(nn.Module):
    """[B, C, ...] -> mean over all but batch and channels -> standardised -> [B, classes]. `channel_axis` is C's."""

    def __init__(self, channels: int, classes: int, channel_axis: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.mean = nn.Parameter(mean, requires_grad=False)
        self.scale = nn.Parameter(1 / deviation.clamp_min(1e-6), requires_grad=False)
        self.linear = nn.Linear(channels, classes)

    def standardise(self, pooled: Tensor) -> Tensor:
        return (pooled - self.mean) * self.scale

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.standardise(pool(feature, self.channel_axis)))
        return logits


@dataclass(frozen=True)
class AttachExit:
    """`weight_decay` on the linear layer; `steps` of full-batch L-BFGS."""

    weight_decay: float = 1e-3
    steps: int = 60

    def __call__(self, head: Model, teacher: Tensor, progress: Progress = silent) -> Model:
        """The exit as a Model of its own: in: the head's outputs, out: one output named "logits".

        `head.calibration` and `teacher` [N, classes] (the model's logits on the same samples, in order) train it.
        Raises DataError for fewer than 16 samples, or a head with several outputs.
        """
        samples = head.calibration
        if len(samples) < MIN_SAMPLES or len(samples) != len(teacher):
            raise DataError(
                f"an exit learns from {len(samples)} samples and {len(teacher)} answers, allowed {MIN_SAMPLES} or more",
                hint="give --train or --calibration a folder with some hundred images",
            )
        if len(head.output_names) != 1:
            raise DataError(f"an exit reads one feature, the head gives {list(head.output_names)}")
        feature_name = head.output_names[0]
        features = [head.forward(sample)[feature_name] for sample in samples]
        axis = channel_axis(features[0])
        pooled = torch.cat([pool(feature, axis) for feature in features])
        classifier = PooledClassifier(pooled.shape[1], teacher.shape[1], axis, pooled.mean(0), pooled.std(0))
        self._fit(classifier, pooled, teacher.softmax(-1), progress)
        example: Sample = {feature_name: features[0]}
        dynamic = {feature_name: {0: "batch"}} if head.dynamic else {}
        held_out = tuple({feature_name: head.forward(sample)[feature_name]} for sample in head.held_out)
        model = Model(
            name=f"{head.name}-exit",
            module=classifier.eval(),
            example_inputs=example,
            output_names=("logits",),
            task=head.task,
            dynamic=dynamic,
            held_out=held_out,
            labels=head.labels,
            source=head.source,
        )
        return Capture()(model, progress)

    def _fit(self, classifier: PooledClassifier, pooled: Tensor, target: Tensor, progress: Progress) -> None:
        rows = classifier.standardise(pooled)
        linear = classifier.linear
        nn.init.zeros_(linear.weight)
        with torch.no_grad():
            linear.bias.copy_(target.mean(0).clamp_min(1e-6).log())
        optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=self.steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(linear(rows), target) + self.weight_decay * linear.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        progress("train the early exit", 0, 0)
        optimizer.step(closure)  # type: ignore[no-untyped-call]


def channel_axis(feature: Tensor) -> int:
    """[B, C, H, W]: 1; [B, N, C] tokens and [B, C] vectors: the last."""
    return 1 if feature.dim() == 4 else feature.dim() - 1


def pool(feature: Tensor, channel_axis: int) -> Tensor:
    """[B, C, H, W] or [B, N, C] or [B, C] -> [B, C]."""
    axes = [axis for axis in range(1, feature.dim()) if axis != channel_axis]
    return feature.mean(axes) if axes else feature
