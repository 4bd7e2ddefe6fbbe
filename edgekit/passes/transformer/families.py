"""Where the encoder sits in a user's module, and how its layers become `EncoderBlock`s: one row a family.

A family is known by the class names of its layers, so nothing of transformers is imported here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import SourceError
from edgekit.passes.transformer.block import EncoderBlock, FeedForward, SelfAttention


@dataclass(frozen=True)
class Family:
    """`layers`: class names. `convert`: a layer -> its block. `protected`: how many leading tokens are no content
    (class, distillation, registers), from the module that holds the embeddings. `takes_mask`: its layers get an
    additive attention mask second. `returns_tuple`: its layers answer (tokens, ...)."""

    name: str
    layers: frozenset[str]
    convert: Callable[[Any], EncoderBlock]
    protected: Callable[[nn.Module], int]
    takes_mask: bool = False
    returns_tuple: bool = False


@dataclass(frozen=True)
class Found:
    """`path`: of the list of layers in the module. `blocks` are made of the module's own layers. `run`: what an earlier
    pass put in their place, which holds the blocks as its `blocks`; None: the layers are the family's."""

    family: Family
    path: str
    blocks: tuple[EncoderBlock, ...]
    protected: int
    run: nn.Module | None = None


class Stack(nn.Module):
    """Stands where the list of layers stood, as its only layer. `run` maps tokens and bias to tokens."""

    def __init__(self, run: nn.Module, family: Family) -> None:
        super().__init__()
        self.run, self.family = run, family
        self._takes_mask, self._returns_tuple = family.takes_mask, family.returns_tuple

    def forward(self, tokens: Tensor, mask: Tensor | None = None, *others: Any, **options: Any) -> Any:
        """`mask`: a family without masks gets a head mask here, always None."""
        answer = self.run(tokens, mask if self._takes_mask else None)
        return (answer,) if self._returns_tuple else answer


class PlainStack(nn.Module):
    """The blocks one after the other."""

    def __init__(self, blocks: tuple[EncoderBlock, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, bias)
        return tokens


def find_encoder(module: nn.Module, name: str = "the module") -> Found:
    """The one encoder of `module`, as its family made it or as an earlier pass left it. Raises SourceError where there
    is none of a known family, or several."""
    stacks = [(path, child) for path, child in module.named_modules() if isinstance(child, Stack)]
    if len(stacks) == 1:
        path, stack = stacks[0]
        changed = tuple(block for block in _blocks(stack.run) if isinstance(block, EncoderBlock))
        return Found(stack.family, path.rpartition(".")[0], changed, stack.family.protected(module), stack.run)
    found = [
        (path, family, child)
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child)
        for family in FAMILIES
        if {type(layer).__name__ for layer in child} <= family.layers
    ]
    if len(found) != 1:
        known = ", ".join(family.name for family in FAMILIES)
        got = "no encoder" if not found else f"{len(found)} encoders"
        raise SourceError(
            f"{name} has {got} of a known family, allowed one of: {known}",
            hint="tokens, heads and blocks are pruned in these alone: leave the option out to export it as it is",
        )
    path, family, layers = found[0]
    blocks = tuple(family.convert(layer) for layer in layers)
    return Found(family, path, blocks, family.protected(module))


def _blocks(run: nn.Module) -> nn.ModuleList:
    blocks = run.blocks
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def with_stack(module: nn.Module, found: Found, run: nn.Module) -> nn.Module:
    """`module` changed in place: its layers replaced by `run`. Give a copy that nobody else has."""
    parent_path, _, attribute = found.path.rpartition(".")
    parent = module.get_submodule(parent_path)
    kind = nn.Sequential if isinstance(getattr(parent, attribute), nn.Sequential) else nn.ModuleList
    stack = Stack(run, found.family)
    setattr(parent, attribute, nn.Sequential(stack) if kind is nn.Sequential else nn.ModuleList([stack]))
    return module


def opened(module: nn.Module, name: str) -> tuple[nn.Module, Found, nn.ModuleList]:
    """A copy of `module` whose blocks stand in a stack and may be changed: the list holds those that run."""
    copied = copy.deepcopy(module).eval()
    found = find_encoder(copied, name)
    if found.run is None:
        run = PlainStack(found.blocks)
        with_stack(copied, found, run)
        found = replace(found, run=run)
    assert found.run is not None
    return copied, found, _blocks(found.run)


def _vit(layer: Any) -> EncoderBlock:
    own = layer.attention.attention
    return EncoderBlock(
        SelfAttention(own.query, own.key, own.value, layer.attention.output.dense, own.num_attention_heads),
        FeedForward(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
        layer.layernorm_before,
        layer.layernorm_after,
        is_prenorm=True,
    )


def _dinov2(layer: Any) -> EncoderBlock:
    if not hasattr(layer.mlp, "fc1"):
        raise SourceError("DINOv2 with gated feed-forward layers is not known", hint="use the small to large sizes")
    own = layer.attention.attention
    return EncoderBlock(
        SelfAttention(own.query, own.key, own.value, layer.attention.output.dense, own.num_attention_heads),
        FeedForward(layer.mlp.fc1, layer.mlp.activation, layer.mlp.fc2),
        layer.norm1,
        layer.norm2,
        is_prenorm=True,
        scale1=layer.layer_scale1,
        scale2=layer.layer_scale2,
    )


def _bert(layer: Any) -> EncoderBlock:
    own = layer.attention.self
    if getattr(own, "position_embedding_type", "absolute") != "absolute":
        raise SourceError(
            f"position embeddings of type {own.position_embedding_type!r}, allowed absolute",
            hint="attention that depends on distances cannot lose tokens",
        )
    return EncoderBlock(
        SelfAttention(own.query, own.key, own.value, layer.attention.output.dense, own.num_attention_heads),
        FeedForward(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
        layer.attention.output.LayerNorm,
        layer.output.LayerNorm,
        is_prenorm=False,
    )


def _whisper(layer: Any) -> EncoderBlock:
    own = layer.self_attn
    return EncoderBlock(
        SelfAttention(own.q_proj, own.k_proj, own.v_proj, own.out_proj, own.num_heads),
        FeedForward(layer.fc1, layer.activation_fn, layer.fc2),
        layer.self_attn_layer_norm,
        layer.final_layer_norm,
        is_prenorm=True,
    )


def _fashion(layer: Any) -> EncoderBlock:
    """One matrix for query, key and value is taken apart: copies of its rows."""
    expand, activation, contract = layer.mlp
    return EncoderBlock(
        SelfAttention(*_thirds(layer.qkv), layer.projection, layer.heads),
        FeedForward(expand, activation, contract),
        layer.norm1,
        layer.norm2,
        is_prenorm=True,
    )


def _thirds(joint: nn.Linear) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    width = joint.out_features // 3
    parts = []
    for index in range(3):
        rows = slice(index * width, (index + 1) * width)
        part = nn.Linear(joint.in_features, width, bias=joint.bias is not None)
        with torch.no_grad():
            part.weight.copy_(joint.weight[rows])
            if part.bias is not None and joint.bias is not None:
                part.bias.copy_(joint.bias[rows])
        parts.append(part)
    return parts[0], parts[1], parts[2]


def _leading(*attributes: str) -> Callable[[nn.Module], int]:
    """How many tokens the embeddings put in front: the lengths of the parameters named so, where they are there."""

    def count(module: nn.Module) -> int:
        sizes = {
            name.rpartition(".")[2]: value.shape[1]
            for name, value in module.named_parameters()
            if name.rpartition(".")[2] in attributes
        }
        return sum(sizes.values())

    return count


_IMAGE = ("cls_token", "distillation_token", "register_tokens", "class_token")

FAMILIES = (
    Family("ViT and DeiT", frozenset({"ViTLayer", "DeiTLayer"}), _vit, _leading(*_IMAGE)),
    Family("DINOv2", frozenset({"Dinov2Layer", "Dinov2WithRegistersLayer"}), _dinov2, _leading(*_IMAGE)),
    Family("BERT", frozenset({"BertLayer"}), _bert, lambda module: 1, takes_mask=True, returns_tuple=True),
    Family(
        "Whisper's encoder",
        frozenset({"WhisperEncoderLayer"}),
        _whisper,
        lambda module: 0,
        takes_mask=True,
        returns_tuple=True,
    ),
    Family("fashion-vit", frozenset({"EncoderBlock"}), _fashion, _leading(*_IMAGE)),
)
