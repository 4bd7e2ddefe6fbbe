"""A small ViT of transformers with random weights, and what it sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.model import Model, Sample


class Classifier(nn.Module):
    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 10)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.head(self.encoder(pixel_values=pixel_values).last_hidden_state[:, 0])
        return tokens


@pytest.fixture(scope="session")
def small_vit() -> Model:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_channels=1,
        attn_implementation="eager",
        initializer_range=0.2,
    )
    module = Classifier(ViTModel(config, add_pooling_layer=False), 32).eval()
    samples: tuple[Sample, ...] = tuple({"pixel_values": torch.randn(1, 1, 16, 16)} for _ in range(48))
    return Model(
        "small-vit",
        module,
        dict(samples[0]),
        output_names=("logits",),
        dynamic={"pixel_values": {0: "batch"}},
        calibration=samples[:32],
        held_out=samples[32:],
    )


@pytest.fixture(scope="session")
def small_bert() -> Model:
    """Random tokens of 3 to 8 of 8, padded."""
    from transformers import BertConfig, BertModel

    from edgekit.zoo.minilm import SentenceEncoder

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        attn_implementation="eager",
        initializer_range=0.2,
    )
    module = SentenceEncoder(BertModel(config, add_pooling_layer=False)).eval()
    samples = []
    for index in range(48):
        mask = (torch.arange(8) < 3 + index % 6).long().unsqueeze(0)
        samples.append({"input_ids": torch.randint(1, 50, (1, 8)) * mask, "attention_mask": mask})
    dims = {0: "batch", 1: "sequence"}
    return Model(
        "small-bert",
        module,
        dict(samples[0]),
        output_names=("embedding",),
        dynamic={"input_ids": dims, "attention_mask": dict(dims)},
        calibration=tuple(samples[:32]),
        held_out=tuple(samples[32:]),
    )
