"""The pass: of a model of several tasks the one that is asked for, without the experts and heads of the others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from edgekit.bundle.manifest import Postprocess
from edgekit.errors import SourceError, UnknownNameError
from edgekit.model import Model
from edgekit.passes.adaptive.experts import KeptExperts, TaskExperts
from edgekit.passes.base import Pass
from edgekit.progress import Progress


class Multitask(Protocol):
    """What a module of several tasks offers: `tasks` in the order of its outputs, `labels` of those that classify, and
    one task's answer. What is of one task alone stands in a ModuleDict by the tasks' names, or in TaskExperts."""

    tasks: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]

    def answer(self, *inputs: Tensor, task: str) -> Tensor: ...


class OneTask(nn.Module):
    def __init__(self, module: nn.Module, task: str) -> None:
        super().__init__()
        self.module, self.task = module, task

    def forward(self, image: Tensor) -> Tensor:
        return cast(Multitask, self.module).answer(image, task=self.task)


@dataclass(frozen=True)
class KeepTask(Pass):
    """`task`: by name. Its answers stay the same; weights that only other tasks use are gone."""

    task: str

    def requires(self, model: Model) -> None:
        tasks = getattr(model.module, "tasks", None)
        has_experts = any(isinstance(layer, TaskExperts) for layer in model.module.modules())
        if not tasks or not has_experts or len(model.example_inputs) != 1:
            raise SourceError(
                f"{model.name} is no model of several tasks with experts of their own",
                hint="give a module with `tasks`, `answer` and TaskExperts, such as fashion-vit-tasks",
            )
        if self.task not in tasks:
            raise UnknownNameError("task", self.task, tasks)

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        module = copy.deepcopy(model.module).eval()
        several = cast(Multitask, module)
        index = several.tasks.index(self.task)
        dropped = 0
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, TaskExperts):
                    setattr(parent, name, KeptExperts(child, index))
                    dropped += child.experts - child.chosen.shape[1]
                elif isinstance(child, nn.ModuleDict) and set(child) == set(several.tasks):
                    setattr(parent, name, nn.ModuleDict({self.task: child[self.task]}))
        labels = several.labels.get(self.task, ())
        is_judged = model.postprocess is not None and model.postprocess.output == self.task
        kept = model.evolve_quietly(
            name=f"{model.name}-{self.task}",
            module=OneTask(module, self.task),
            output_names=(self.task,),
            labels=model.labels if is_judged else (),
            postprocess=Postprocess(kind="classification", output=self.task, labels=labels) if labels else None,
        )
        return kept, f"{self.task}: {dropped} experts of other tasks left out"
