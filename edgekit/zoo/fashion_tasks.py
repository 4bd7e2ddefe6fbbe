"""A small vision transformer of three tasks with experts in every second block, trained by
samples/training/train_adaptive_experts.py: the item, the group that it belongs to, and how the picture is turned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.bundle.manifest import Postprocess
from edgekit.model import Model
from edgekit.passes.adaptive.experts import TaskExperts
from edgekit.zoo.fashion import LABELS, EncoderBlock, FashionVit, fashion_sample

TASKS = ("item", "group", "turn")
GROUPS = ("top", "trousers", "dress", "shoe", "bag")
GROUP_OF = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)  # by item
TURNS = ("upright", "left", "upside down", "right")
EXPERTS, UNITS, CHOSEN = 6, 64, 2


class ExpertBlock(EncoderBlock):
    """`mlp` takes the task beside the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, 2, 0.0)
        self.mlp = TaskExperts(width, UNITS, EXPERTS, len(TASKS), CHOSEN)  # type: ignore[assignment]

    def route(self, tokens: Tensor, task: int) -> Tensor:
        tokens = tokens + self._attend(self.norm1(tokens))
        changed: Tensor = self.mlp(self.norm2(tokens), task)
        return tokens + changed


class FashionTasks(FashionVit):
    """[N, 1, 28, 28] -> the logits of each task, in the order of TASKS."""

    tasks = TASKS

    def __init__(self) -> None:
        super().__init__()
        self.labels = {"item": LABELS, "group": GROUPS, "turn": TURNS}
        for index in range(1, len(self.blocks), 2):
            self.blocks[index] = ExpertBlock(64, 4)
        self.classifier = nn.ModuleDict({task: nn.Linear(64, len(self.labels[task])) for task in TASKS})  # type: ignore[assignment]

    def answer(self, image: Tensor, task: str) -> Tensor:
        tokens, index = self.embed(image), TASKS.index(task)
        for block in self.blocks:
            tokens = block.route(tokens, index) if isinstance(block, ExpertBlock) else block(tokens)
        heads = self.classifier
        assert isinstance(heads, nn.ModuleDict)
        logits: Tensor = heads[task](self.norm(tokens)[:, 0])
        return logits

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(self.answer(image, task) for task in TASKS)


def turned(image: Tensor, quarters: Tensor) -> Tensor:
    """[N, 1, 28, 28], each by its number of quarters to the left, int64 [N]."""
    return torch.stack([torch.rot90(one, int(count), (1, 2)) for one, count in zip(image, quarters, strict=True)])


def fashion_tasks() -> Model:
    """`image` float32 [batch, 1, 28, 28] -> `item` [batch, 10], `group` [batch, 5], `turn` [batch, 4]. Raises
    MissingExtraError."""
    model = fashion_sample("fashion-vit-tasks", FashionTasks())
    judged = Postprocess(kind="classification", output="item", labels=LABELS)
    return model.evolve_quietly(output_names=TASKS, postprocess=judged)
