"""Trains fashion-vit-tasks: item, group and turn of a Fashion-MNIST picture, with experts that tasks choose.

python -m samples.training.train_adaptive_experts -o fashion-vit-tasks.safetensors

From the trained fashion-vit: each expert begins as half of a block's feed-forward units. For the first quarter of the
steps every task weighs every expert (kept apart by a balance term, as in M3ViT), then it keeps the two that counted
most. Written in half precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.zoo.fashion import EncoderBlock, fashion_vit, normalize
from edgekit.zoo.fashion_tasks import (
    EXPERTS,
    GROUP_OF,
    TASKS,
    UNITS,
    ExpertBlock,
    FashionTasks,
    turned,
)
from samples.data import fashion_mnist
from samples.training.command import training_command
from samples.training.trainer import Options, Trainer, finished, publish

BALANCE = 0.05
NOISE = 0.02
SEARCHING = 0.25  # of the steps


class ExpertTrainer(Trainer):
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        net: Any = self.module
        if self.epoch * self.steps + self.step >= SEARCHING * self.options.epochs * self.steps:
            choose(net, images)
        total = torch.zeros(())
        for task in TASKS:
            given, truth = asked(task, images, labels, torch.randint(0, 4, (len(images),)))
            smoothing = self.options.label_smoothing
            total = total + functional.cross_entropy(net.answer(given, task), truth, label_smoothing=smoothing)
        return total + BALANCE * self._imbalance(net, images[:16])

    def _imbalance(self, net: FashionTasks, images: Tensor) -> Tensor:
        """The squared coefficient of variation of what the experts count for over all tasks, while they are sought."""
        if _experts(net)[0].is_chosen:
            return torch.zeros(())
        rows = [mass.sum(0) for mass in counted(net, images)]
        return torch.stack([row.var() / row.mean().square() for row in rows]).sum()

    def score(self) -> float:
        labels = self.held_labels
        return sum(task_accuracies(self.module, self.held_images, labels).values()) / len(TASKS)


def asked(task: str, images: Tensor, labels: Tensor, quarters: Tensor) -> tuple[Tensor, Tensor]:
    """What a task is given, and what is right."""
    if task == "turn":
        return turned(images, quarters), quarters
    return images, labels if task == "item" else torch.tensor(GROUP_OF)[labels]


def counted(net: FashionTasks, images: Tensor) -> list[Tensor]:
    """For each layer of experts [tasks, experts]: the mean weight that each task gives to each expert."""
    layers = _experts(net)
    found: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs, rows=rows: rows.append(layer.weights(*inputs).mean((0, 1)))
        )
        for layer, rows in zip(layers, found, strict=True)
    ]
    for task in TASKS:
        net.answer(images, task)
    for hook in hooks:
        hook.remove()
    return [torch.stack(rows) for rows in found]


def choose(net: FashionTasks, images: Tensor) -> None:
    """Once: each task keeps the experts that count most."""
    if _experts(net)[0].is_chosen:
        return
    with torch.no_grad():
        for layer, mass in zip(_experts(net), counted(net, images), strict=True):
            layer.choose(mass)


def _experts(net: nn.Module) -> list[Any]:
    return [block.mlp for block in net.modules() if isinstance(block, ExpertBlock)]


def begin() -> FashionTasks:
    """The trained fashion-vit, its feed-forward units shared out to experts; with every expert it answers as before."""
    whole: Any = fashion_vit().module
    net: Any = FashionTasks()
    state = net.state_dict()
    state.update({name: value for name, value in whole.state_dict().items() if name in state})
    net.load_state_dict(state)
    net.classifier["item"].load_state_dict(whole.classifier.state_dict())
    with torch.no_grad():
        for block, old in zip(net.blocks, whole.blocks, strict=True):
            if isinstance(block, ExpertBlock):
                _share_out(block.mlp, old)
    return net.requires_grad_(True)


def _share_out(layer: Any, old: EncoderBlock) -> None:
    expand, _, contract = old.mlp
    copies = EXPERTS * UNITS // expand.out_features
    for ours, theirs, dim in ((layer.expand, expand, 0), (layer.contract, contract, 1)):
        weight = torch.cat([theirs.weight] * copies, dim)
        ours.weight.copy_(weight * (1 + NOISE * torch.randn_like(weight)))
    layer.expand.bias.copy_(torch.cat([expand.bias] * copies))
    # Each expert counts for 1 / EXPERTS, and each unit is there `copies` times.
    layer.contract.weight.mul_(EXPERTS / copies)
    layer.contract.bias.copy_(contract.bias)


def task_accuracies(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """On uint8 images [N, 28, 28]; the turns are the same for every call."""
    asked_of: Any = net.eval()
    quarters = torch.randint(0, 4, (len(images),), generator=torch.Generator().manual_seed(0))
    right = dict.fromkeys(TASKS, 0)
    with torch.inference_mode():
        for part in torch.arange(len(images)).split(500):
            for task in TASKS:
                given, truth = asked(task, normalize(images[part]), labels[part], quarters[part])
                right[task] += int((asked_of.answer(given, task).argmax(1) == truth).sum())
    return {task: count / len(images) for task, count in right.items()}


@training_command(__doc__, epochs=2, steps=300, batch=48, learning_rate=0.0008)
def main(options: Options) -> None:
    data = fashion_mnist()
    trainer = ExpertTrainer(begin(), data, options)
    net: Any = finished(trainer)
    test, labels = torch.from_numpy(data.test), torch.from_numpy(data.test_labels)
    told = {
        "test_accuracy": {task: round(value, 4) for task, value in task_accuracies(net, test, labels).items()},
        "test_images": len(test),
        "experts": [str(layer.chosen.tolist()) for layer in _experts(net)],
    }
    publish(trainer, net.state_dict(), told, half=True)


if __name__ == "__main__":
    main()
