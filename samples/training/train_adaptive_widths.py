"""Trains fashion-vit to work at widths 1, 0.75 and 0.5 and to answer behind blocks 2 and 4: one set of weights.

python -m samples.training.train_adaptive_widths -o fashion-vit-adaptive.safetensors

From the trained fashion-vit, its heads and units sorted. Each step runs the widest, the narrowest and those between
(sandwich rule), the narrow ones and the early answers taught by the widest's answers on the same images (in-place
distillation: Yu and Huang, arXiv:1903.05134, sections 3.1 and 3.3). Written in half precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.passes.adaptive.blocks import plain_stack
from edgekit.passes.adaptive.heads import TokenHead
from edgekit.passes.adaptive.narrow import narrow
from edgekit.passes.adaptive.widths import OrderUnits
from edgekit.passes.transformer.families import PlainStack
from edgekit.zoo.fashion import FashionVit, fashion_vit
from edgekit.zoo.fashion_adaptive import EXITS, WIDTHS, AdaptiveFashionVit
from samples.data import FashionMnist, fashion_mnist
from samples.training.command import training_command
from samples.training.trainer import Options, Trainer, accuracy, finished, publish

EXIT_WEIGHT = 0.5


class AdaptiveTrainer(Trainer):
    """The module is fashion-vit with its layers as plain blocks, and `exits` beside them."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        net: Any = self.module
        tokens = start = net.embed(images)
        early = []
        for depth, block in enumerate(_stack(net).blocks, 1):
            tokens = block(tokens)
            if depth in EXITS:
                early.append(net.exits[str(depth)](tokens))
        whole = net.classify(tokens)
        loss = functional.cross_entropy(whole, labels, label_smoothing=self.options.label_smoothing)
        for logits in early:
            loss = loss + EXIT_WEIGHT * _distance(logits, whole)
        for width in WIDTHS[1:]:
            loss = loss + _distance(at_width(net, start, width), whole)
        return loss


def at_width(net: Any, tokens: Tensor, width: float) -> Tensor:
    for block in _stack(net).blocks:
        tokens = narrow(block, width)(tokens)
    logits: Tensor = net.classify(tokens)
    return logits


def _stack(net: nn.Module) -> PlainStack:
    return plain_stack(net, "fashion-vit")


def _distance(logits: Tensor, teacher: Tensor) -> Tensor:
    return functional.cross_entropy(logits, teacher.detach().softmax(-1))


def begin() -> nn.Module:
    """The trained fashion-vit in order, with exits that know nothing yet."""
    module: Any = OrderUnits()(fashion_vit()).module
    module.exits = AdaptiveFashionVit().exits
    return module.requires_grad_(True)


def joined(net: Any) -> AdaptiveFashionVit:
    """The same weights with one matrix for query, key and value again."""
    whole = AdaptiveFashionVit()
    names = set(whole.state_dict())
    state = {name: value for name, value in net.state_dict().items() if name in names}
    for index, block in enumerate(_stack(net).blocks):
        own, ffn, place = block.attention, block.feed_forward, f"blocks.{index}"
        for kind in ("weight", "bias"):
            state[f"{place}.qkv.{kind}"] = torch.cat([getattr(part, kind) for part in (own.query, own.key, own.value)])
            for name, layer in (
                ("norm1", block.norm1),
                ("norm2", block.norm2),
                ("projection", own.output),
                ("mlp.0", ffn.expand),
                ("mlp.2", ffn.contract),
            ):
                state[f"{place}.{name}.{kind}"] = getattr(layer, kind)
    whole.load_state_dict(state)
    return whole.eval()


class Behind(nn.Module):
    """An early answer as a classifier of images."""

    def __init__(self, net: FashionVit, depth: int, head: TokenHead) -> None:
        super().__init__()
        self.net, self.depth, self.head = net, depth, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.net.blocks[: self.depth](self.net.embed(images)))
        return logits


class Narrow(nn.Module):
    def __init__(self, net: nn.Module, width: float) -> None:
        super().__init__()
        self.net, self.width = net, width

    def forward(self, images: Tensor) -> Tensor:
        net: Any = self.net
        return at_width(net, net.embed(images), self.width)


def accuracies(net: nn.Module, data: FashionMnist) -> dict[str, float]:
    whole: Any = joined(net)
    ways: dict[str, nn.Module] = {f"width {width:g}": Narrow(net, width) for width in WIDTHS}
    ways |= {f"exit {depth}": Behind(whole, depth, whole.exits[str(depth)]) for depth in EXITS}
    test, labels = torch.from_numpy(data.test), torch.from_numpy(data.test_labels)
    return {name: round(accuracy(way, test, labels), 4) for name, way in ways.items()}


@training_command(__doc__, epochs=2, steps=380, batch=64, learning_rate=0.0008)
def main(options: Options) -> None:
    data = fashion_mnist()
    trainer = AdaptiveTrainer(begin(), data, options)
    net = finished(trainer)
    told = {"test_accuracy": accuracies(net, data), "test_images": len(data.test)}
    publish(trainer, joined(net).state_dict(), told, half=True)


if __name__ == "__main__":
    main()
