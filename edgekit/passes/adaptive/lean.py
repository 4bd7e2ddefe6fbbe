"""A block as exporters like it: one matrix for query, key and value, attention as one operator, weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.passes.transformer.block import EncoderBlock, SelfAttention


class LeanBlock(nn.Module):
    """Computes what `block` does; its attention weights cannot be looked at any more."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        own, ffn = block.attention, block.feed_forward
        self.heads, self.is_prenorm = own.heads, block.is_prenorm
        self.sizes = [layer.out_features for layer in (own.query, own.key, own.value)]
        self.joint, self.output = _joint(own), _copied(own.output)
        self.expand, self.activation, self.contract = _copied(ffn.expand), ffn.activation, _copied(ffn.contract)
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.scale1, self.scale2 = block.scale1, block.scale2

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, T, C] -> the same; `bias` [N or 1, 1, 1, T] is added to the scores."""
        if not self.is_prenorm:
            tokens = self.norm1(tokens + self.scale1(self._attend(tokens, bias)))
            behind: Tensor = self.norm2(tokens + self.scale2(self._feed(tokens)))
            return behind
        tokens = tokens + self.scale1(self._attend(self.norm1(tokens), bias))
        changed: Tensor = self.scale2(self._feed(self.norm2(tokens)))
        return tokens + changed

    def _attend(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        batch, count, _ = tokens.shape
        joint = self.joint(tokens)
        if len(set(self.sizes)) == 1:  # one reordering moves all three
            query, key, value = joint.reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            query, key, value = (
                part.reshape(batch, count, self.heads, size // self.heads).transpose(1, 2)
                for part, size in zip(joint.split(self.sizes, -1), self.sizes, strict=True)
            )
        mixed = functional.scaled_dot_product_attention(query, key, value, bias)
        merged: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, count, self.sizes[2]))
        return merged

    def _feed(self, tokens: Tensor) -> Tensor:
        changed: Tensor = self.contract(self.activation(self.expand(tokens)))
        return changed


def _joint(own: SelfAttention) -> nn.Linear:
    """Rows of query, key and value, one below the other; a part without bias gets zeros (Whisper's keys)."""
    parts = (own.query, own.key, own.value)
    layer = nn.Linear(own.query.in_features, sum(part.out_features for part in parts))
    with torch.no_grad():
        layer.weight.copy_(torch.cat([part.weight for part in parts]))
        biases: list[Tensor] = [
            part.weight.new_zeros(part.out_features) if part.bias is None else part.bias for part in parts
        ]
        layer.bias.copy_(torch.cat(biases))
    return layer


def _copied(layer: nn.Linear) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        made.weight.copy_(layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made
