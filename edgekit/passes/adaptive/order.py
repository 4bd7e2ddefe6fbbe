"""Heads and feed-forward units sorted by what they give, so that the first ones are the ones to keep.

A unit gives x_c W[:, c]: its mean square over calibration data and places, E[x_c^2] |W[:, c]|^2. A head gives the sum
over its channels. Sorting is a permutation of rows and columns: the answers stay the same up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgekit.passes.transformer.block import EncoderBlock


def energy(given: Tensor, weight: Tensor) -> Tensor:
    """What each channel adds: `given` [C], mean squares of a linear layer's input, `weight` [O, C] -> [C]."""
    return given * weight.detach().square().sum(0)


def by_unit(energies: Tensor, size: int) -> Tensor:
    """[U x size] -> int64 [U], the units of `size` channels each by what they give, most first."""
    return energies.reshape(-1, size).sum(1).argsort(descending=True, stable=True)


def channels(order: Tensor, size: int) -> Tensor:
    """[U] -> [U x size]: the channels of the units in that order."""
    return (order[:, None] * size + torch.arange(size)).flatten()


def sort_units(blocks: Sequence[EncoderBlock], run: Callable[[], object]) -> None:
    """`blocks` changed in place, sorted by what they give while `run` runs them on calibration data."""
    sums: dict[nn.Module, tuple[Tensor, int]] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2)
        total, count = sums.get(layer, (torch.zeros(rows.shape[1]), 0))
        sums[layer] = total + rows.square().sum(0), count + len(rows)

    layers = [layer for block in blocks for layer in (block.attention.output, block.feed_forward.contract)]
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    means = {layer: total / count for layer, (total, count) in sums.items()}
    for block in blocks:
        _sort(block, means[block.attention.output], means[block.feed_forward.contract])


def _sort(block: EncoderBlock, mixed: Tensor, hidden: Tensor) -> None:
    own, ffn = block.attention, block.feed_forward
    value_width = own.value.out_features // own.heads
    heads = by_unit(energy(mixed, own.output.weight), value_width)
    keys, values = channels(heads, own.head_width), channels(heads, value_width)
    units = by_unit(energy(hidden, ffn.contract.weight), 1)
    with torch.no_grad():
        for layer, order in ((own.query, keys), (own.key, keys), (own.value, values), (ffn.expand, units)):
            layer.weight.copy_(layer.weight[order].clone())
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order].clone())
        for layer, order in ((own.output, values), (ffn.contract, units)):
            layer.weight.copy_(layer.weight[:, order].clone())
