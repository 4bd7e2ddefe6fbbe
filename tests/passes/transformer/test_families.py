"""Each family's layers become blocks that answer the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import SourceError
from edgekit.passes.transformer.families import PlainStack, Stack, find_encoder, with_stack
from edgekit.zoo.fashion import FashionCnn, FashionVit

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "attn_implementation": "eager",
}


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))


def deit() -> nn.Module:
    return transformers.DeiTModel(transformers.DeiTConfig(image_size=32, patch_size=8, **SIZES))


def dinov2() -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=32, patch_size=8, **SIZES))


def registers() -> nn.Module:
    config = transformers.Dinov2WithRegistersConfig(image_size=32, patch_size=8, **SIZES)
    return transformers.Dinov2WithRegistersModel(config)


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(vocab_size=100, **SIZES))


def whisper() -> nn.Module:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        max_source_positions=20,
        num_mel_bins=8,
        attn_implementation="eager",
    )
    return WhisperEncoder(config)


def picture() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32),)


def text() -> tuple[Tensor, ...]:
    """The second row has padding."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return torch.randint(0, 100, (2, 9)), mask


def sound() -> tuple[Tensor, ...]:
    return (torch.randn(2, 8, 40),)


def fashion_picture() -> tuple[Tensor, ...]:
    return (torch.randn(2, 1, 28, 28),)


CASES = [
    (vit, picture, 1),
    (deit, picture, 2),
    (dinov2, picture, 1),
    (registers, picture, 5),
    (bert, text, 1),
    (whisper, sound, 0),
    (FashionVit, fashion_picture, 1),
]


@pytest.mark.parametrize(("make", "feed", "protected"), CASES, ids=[case[0].__name__ for case in CASES])
def test_blocks_answer_as_the_layers_did(
    make: Callable[[], nn.Module], feed: Callable[[], tuple[Tensor, ...]], protected: int
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn_like(value))
    args = feed()
    ours = copy.deepcopy(module)
    found = find_encoder(ours)
    with_stack(ours, found, PlainStack(found.blocks))

    assert found.protected == protected
    assert isinstance(next(iter(ours.get_submodule(found.path).children())), Stack)
    with torch.no_grad():
        want, got = (_tokens(one(*args)) for one in (module, ours))
    assert (got - want).abs().max() < 2e-6 * want.abs().max()


def _tokens(answer: Any) -> Tensor:
    found: Tensor = answer if isinstance(answer, Tensor) else answer.last_hidden_state
    return found


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(SourceError, match="no encoder of a known family"):
        find_encoder(FashionCnn())


def test_two_encoders_are_refused() -> None:
    with pytest.raises(SourceError, match="2 encoders"):
        find_encoder(nn.ModuleList([FashionVit(), FashionVit()]))


def test_attention_that_depends_on_distances_is_refused() -> None:
    config = transformers.BertConfig(vocab_size=100, position_embedding_type="relative_key", **SIZES)
    with pytest.raises(SourceError, match="relative_key"):
        find_encoder(transformers.BertModel(config))
