"""What the softmax lost with the pruned tokens, put back into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.model import Model, Sample
from edgekit.passes.base import Pass
from edgekit.passes.tokens.reducers import MergeSimilar
from edgekit.passes.tokens.stack import ReducingStack
from edgekit.passes.tokens.state import Tokens
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.transformer.families import find_encoder, opened
from edgekit.progress import Progress

WATCHED = 32


@dataclass(frozen=True)
class RestoreAttention(Pass):
    """Each head's output among the tokens that are left becomes a share of itself and a constant, as least squares
    over calibration samples bring it to what the head gave among all tokens: the share goes into the value projection,
    the constant into the bias behind the heads. Nothing is added to the graph.

    The frozen ratio of softmax denominators of Re-ttention (arXiv:2505.22918, section 3), found by block and head.
    Behind PruneTokens where tokens are kept, not merged: merging loses no mass, and DINOv2's cosine fell by 0.01 with
    it. Measured at 0.7 of the FLOPs on dinov2-small by class: mean cosine .9747 as before, the worst .939 to .963; by
    accumulated attention .956 to .938; on fashion-vit 4 to 12 % less squared error at 0.6. Compare before you keep it.
    `slack`: how far a share may be from 1.
    """

    slack: float = 0.3

    def requires(self, model: Model) -> None:
        run = find_encoder(model.module, model.name).run
        if not isinstance(run, ReducingStack):
            raise UsageError(f"the tokens of {model.name} are not pruned", hint="PruneTokens comes before")
        if isinstance(run.reducer, MergeSimilar):
            raise UsageError(
                f"the tokens of {model.name} are merged, and merging loses no attention", hint="leave it as it is"
            )

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        module, found, blocks = opened(model.module, model.name)
        assert isinstance(found.run, ReducingStack)
        inputs = _stack_inputs(model.evolve_quietly(module=module), found.run, _samples(model))
        whole = [values for values, _ in inputs]
        states = [found.run.start(values, bias, owned=True) for values, bias in inputs]
        biases = [state.bias for state in states]
        shares: list[float] = []
        with torch.no_grad():
            for index, block in enumerate(blocks):
                assert isinstance(block, EncoderBlock)
                progress("restore attention", index, len(blocks))
                among_all = [joint_heads(block, values, bias) for values, bias in zip(whole, biases, strict=True)]
                whole = [block(values, bias) for values, bias in zip(whole, biases, strict=True)]
                if states[0].count < whole[0].shape[1]:
                    want = torch.cat([spoken(heads, state) for heads, state in zip(among_all, states, strict=True)])
                    have = torch.cat([joint_heads(block, state.values, state.bias).flatten(0, 1) for state in states])
                    content = torch.cat([(state.known_sizes > 0).flatten() for state in states])
                    shares += fold(block, have[content], want[content], self.slack)
                states = [found.run.step(index, state) for state in states]
        told = f"shares {min(shares):.2f} to {max(shares):.2f}" if shares else "no block sees fewer tokens"
        return model.evolve_quietly(module=module), told


def fold(block: EncoderBlock, have: Tensor, want: Tensor, slack: float) -> list[float]:
    """Changes `block` so that its heads' joint output `have` [n, D] comes nearest to `want` [n, D]; by head, the share
    that its values keep."""
    own = block.attention
    width = own.value.out_features // own.heads
    mean, target = have.double().mean(0), want.double().mean(0)
    centred, wanted = have.double() - mean, want.double() - target
    together = (centred * wanted).reshape(-1, own.heads, width).sum((0, 2))
    alone = centred.square().reshape(-1, own.heads, width).sum((0, 2)).clamp(min=1e-12)
    share = (together / alone).clamp(1 - slack, 1 + slack)
    wide = share.repeat_interleave(width)
    constant = own.output.weight.double() @ (target - wide * mean)
    # The value and output layers may be shared with nobody: `opened` gave a copy.
    own.value.weight.mul_(wide.unsqueeze(1).to(own.value.weight.dtype))
    if own.value.bias is not None:
        own.value.bias.mul_(wide.to(own.value.bias.dtype))
    bias: Tensor | None = own.output.bias
    if bias is None:
        own.output.register_parameter("bias", nn.Parameter(constant.to(own.output.weight.dtype)))
    else:
        bias.add_(constant.to(bias.dtype))
    return [float(value) for value in share]


def joint_heads(block: EncoderBlock, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """[N, T, C] -> what stands before the projection behind the heads, [N, T, D]."""
    attended = block.attention(block.norm1(tokens) if block.is_prenorm else tokens, bias)
    joint: Tensor = (attended.weights @ attended.values).transpose(1, 2).flatten(2)
    return joint


def spoken(heads: Tensor, state: Tokens) -> Tensor:
    """The mean of `heads` [N, T0, D] over the tokens of the input that each one of `state` speaks for, [N x T, D]."""
    assert state.owners is not None
    mine = (state.owners.unsqueeze(1) == torch.arange(state.count)[None, :, None]).to(heads.dtype)
    mean = mine @ heads / mine.sum(2, keepdim=True).clamp(min=1.0)
    return mean.flatten(0, 1)


def _stack_inputs(model: Model, stack: nn.Module, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor | None]]:
    seen: list[tuple[Tensor, Tensor | None]] = []

    def see(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((args[0], args[1] if len(args) > 1 else None))

    handle = stack.register_forward_pre_hook(see)
    try:
        for sample in samples:
            model.forward(sample)
    finally:
        handle.remove()
    return seen


def _samples(model: Model) -> tuple[Sample, ...]:
    return (model.calibration or (model.example_inputs,))[:WATCHED]
