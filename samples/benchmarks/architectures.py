"""The networks of the latency benchmark: real-ish sizes, random weights, built from transformers' configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 8000


class FirstOutput(nn.Module):
    """A transformers model as one tensor in, one tensor out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value: Tensor) -> Tensor:
        output = self.inner(value)
        return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class Architecture:
    """`model` and `config` are names in transformers; `tokens` 0 means a picture of `size` x `size`; `pruned` as in
    `--prune-tokens`."""

    model: str
    config: str
    options: dict[str, Any]
    size: int = 224
    channels: int = 3
    tokens: int = 0
    pruned: str = "none"

    def module(self) -> nn.Module:
        import transformers

        config = getattr(transformers, self.config)(**self.options)
        return FirstOutput(getattr(transformers, self.model)(config)).eval()

    def example(self) -> Tensor:
        if self.tokens:
            return torch.randint(0, VOCABULARY, (1, self.tokens))
        return torch.randn(1, self.channels, self.size, self.size)


@dataclass(frozen=True)
class EfficientNetLite:
    """The sample's network, which transformers does not have."""

    name: str = "efficientnet-lite0"
    pruned: str = "none"

    def module(self) -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        module: nn.Module = EfficientNet.from_name(self.name)
        return module.eval()

    def example(self) -> Tensor:
        return torch.randn(1, 3, 224, 224)


def _picture(family: str, size: int = 224, channels: int = 3, **options: Any) -> Architecture:
    return Architecture(f"{family}ForImageClassification", f"{family}Config", options, size, channels)


def _text(family: str, tokens: int, **options: Any) -> Architecture:
    return Architecture(f"{family}Model", f"{family}Config", {"vocab_size": VOCABULARY, **options}, tokens=tokens)


def _pruned_vit(pruned: str, size: int, patch_size: int, layers: int) -> Architecture:
    options = {"image_size": size, "patch_size": patch_size, "num_hidden_layers": layers, **_TINY_VIT}
    return Architecture("ViTForImageClassification", "ViTConfig", options, size, pruned=pruned)


_TINY_VIT = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
_SMALL_VIT = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}

ARCHITECTURES: dict[str, Any] = {
    "efficientnet-lite0": EfficientNetLite(),
    "resnet-tiny-28": _picture(
        "ResNet", 28, 1, num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1],
        layer_type="basic",
    ),
    "resnet-18": _picture(
        "ResNet", embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
    "resnet-26": _picture("ResNet", depths=[2, 2, 2, 2]),
    "mobilenet-v1": _picture("MobileNetV1"),
    "mobilenet-v2": _picture("MobileNetV2"),
    "mobilenet-v2-0.75-160": _picture("MobileNetV2", 160, depth_multiplier=0.75),
    "convnext": _picture("ConvNext", hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 6, 2]),
    "regnet": _picture("RegNet", hidden_sizes=[32, 64, 160, 384], depths=[1, 2, 4, 2], groups_width=16),
    "efficientnet-b0": _picture(
        "EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=224
    ),
    "vit-tiny-16": _picture("ViT", **_TINY_VIT),
    "vit-small-32": _picture("ViT", patch_size=32, num_hidden_layers=8, **_SMALL_VIT),
    "vit-tiny-28-4": _pruned_vit("none", 28, 4, 6),
    "vit-tiny-28-4-merge": _pruned_vit("merge@0.7", 28, 4, 6),
    "vit-tiny-16-merge": _pruned_vit("merge@0.7", 224, 16, 12),
    "vit-tiny-16-class": _pruned_vit("class@0.7", 224, 16, 12),
    "deit-tiny-6": _picture("DeiT", num_hidden_layers=6, **_TINY_VIT),
    "swin": _picture("Swin", embed_dim=48, depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24]),
    "poolformer": _picture("PoolFormer", hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 4, 2]),
    "segformer-b0": Architecture("SegformerForSemanticSegmentation", "SegformerConfig", {}, 256),
    "minilm-64": _text(
        "Bert", 64, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "bert-tiny-128": _text(
        "Bert", 128, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    ),
    "distilbert-32": _text("DistilBert", 32, n_layers=4),
    "electra-small-96": _text("Electra", 96, num_hidden_layers=6),
}  # fmt: skip
