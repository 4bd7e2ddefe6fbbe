"""An encoder cut behind some of its blocks, with a head at each cut that can answer there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.errors import DataError, SourceError, UsageError
from edgekit.model import Model, Sample
from edgekit.passes.adaptive.blocks import block_paths
from edgekit.passes.adaptive.heads import TokenHead, distill, fit_map
from edgekit.passes.capture import Capture
from edgekit.passes.exits import MIN_SAMPLES
from edgekit.passes.partition.candidates import cuts as candidate_cuts
from edgekit.passes.partition.naming import friendly
from edgekit.passes.partition.split import split
from edgekit.passes.partition.stages import Cut
from edgekit.progress import Progress, silent


@dataclass(frozen=True)
class Laddered:
    """`stages` compose to the whole model; `heads[k]` reads what `stages[k]` gives, `depths[k]` blocks deep."""

    stages: tuple[Model, ...]
    heads: tuple[Model, ...]
    depths: tuple[int, ...]


@dataclass(frozen=True)
class AttachExits:
    """`after`: numbers of blocks, an exit behind each. Heads that the user's module brings (`exits`, a ModuleDict by
    that number, each of tokens [B, T, C]) are taken as they are; the others are distilled from the model's answers on
    calibration data, by `steps` of L-BFGS with `weight_decay`."""

    after: tuple[int, ...]
    weight_decay: float = 1e-3
    steps: int = 60

    def __call__(self, original: Model, captured: Model, teacher: Tensor, progress: Progress = silent) -> Laddered:
        """`original`: the user's own module. `captured`: its graph, which is cut. `teacher` [N, classes], or [N, D] of
        an embedding: its answers on `captured.calibration`.

        Raises UsageError for depths that are none, SourceError for a model that answers otherwise or has no encoder of
        a known family, and DataError where heads must be trained and there are fewer than 16 samples.
        """
        paths = block_paths(original.module, original.name)
        check_depths(self.after, len(paths))
        post = captured.postprocess
        if post is None or len(captured.output_names) != 1 or teacher.dim() != 2:
            raise SourceError(
                f"{captured.name} gives neither classes nor one embedding, and an early answer stands for one of these",
                hint="--widths gives any encoder smaller variants",
            )
        stages = split(captured, [_cut_behind(captured, paths[depth - 1]) for depth in self.after])
        own = getattr(original.module, "exits", None)
        heads = []
        for depth, stage in zip(self.after, stages, strict=False):
            progress(f"exit behind block {depth}", 0, 0)
            brought = own[str(depth)] if isinstance(own, nn.ModuleDict) and str(depth) in own else None
            heads.append(self._head(captured, stage, depth, brought, teacher, progress))
        return Laddered(stages, tuple(heads), self.after)

    def _head(
        self, whole: Model, stage: Model, depth: int, brought: nn.Module | None, teacher: Tensor, progress: Progress
    ) -> Model:
        name = tokens_of(stage)

        def tokens(samples: Sequence[Sample]) -> tuple[Sample, ...]:
            return tuple({name: stage.forward(sample)[name]} for sample in samples)

        calibration = tokens(stage.calibration)
        example = stage.forward(stage.example_inputs)[name]
        module = copy.deepcopy(brought) if brought is not None else None
        if module is None:
            if len(calibration) < MIN_SAMPLES or len(calibration) != len(teacher):
                raise DataError(
                    f"an exit learns from {len(calibration)} samples, allowed {MIN_SAMPLES} or more",
                    hint="give --calibration a folder with some hundred images",
                )
            head = TokenHead(example.shape[-1], teacher.shape[1])
            with torch.no_grad():
                pooled = torch.cat([head.pool(sample[name]) for sample in calibration])
            if whole.postprocess is not None and whole.postprocess.kind == "embedding":
                fit_map(head, pooled, teacher)
            else:
                distill(head, pooled, teacher.softmax(-1), self.weight_decay, self.steps)
            module = head
        model = Model(
            name=f"{whole.name}-exit-{depth}",
            module=module.eval(),
            example_inputs={name: example},
            output_names=whole.output_names,
            task=whole.task,
            dynamic=_loose(stage, name),
            calibration=calibration,
            held_out=tokens(stage.held_out),
            labels=whole.labels,
            postprocess=whole.postprocess,
            source=whole.source,
        )
        return Capture()(model, progress)


def check_depths(after: Sequence[int], blocks: int) -> None:
    """Raises UsageError."""
    if not after or list(after) != sorted(set(after)) or after[0] < 1 or after[-1] >= blocks:
        got = ", ".join(map(str, after)) or "none"
        raise UsageError(
            f"exits behind the blocks {got}, allowed rising numbers from 1 to {blocks - 1}",
            hint=f"the encoder has {blocks} blocks; behind the last one stands the model's own answer",
        )


def tokens_of(stage: Model) -> str:
    """The output of a stage that holds the tokens. Raises SourceError where it cannot be told."""
    outputs = stage.forward(stage.example_inputs)
    found = [name for name, value in outputs.items() if value.dim() == 3 and value.is_floating_point()]
    if len(found) != 1:
        raise SourceError(f"{stage.name} hands on {len(found)} values of tokens, allowed 1", hint="cut elsewhere")
    return found[0]


def _loose(stage: Model, name: str) -> dict[str, dict[int, str]]:
    spec = next(spec for spec in stage.output_specs if spec.name == name)
    dims = {dim: size for dim, size in enumerate(spec.shape) if isinstance(size, str)}
    return {name: dims} if dims else {}


def _cut_behind(model: Model, path: str) -> Cut:
    """Names of cuts leave out a module that holds everything."""
    wanted = friendly(path)
    for cut in candidate_cuts(model):
        if cut.name == wanted or wanted.endswith(f".{cut.name}"):
            return cut
    raise SourceError(f"{model.name} cannot be cut behind {wanted}", hint="`edgekit inspect` lists the cuts")
