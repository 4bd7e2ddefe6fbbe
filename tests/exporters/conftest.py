"""Small networks that every exporter is tried on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.capture import Capture


class Convolutional(nn.Module):
    """Stem, depthwise block with a residual, pooling, classifier: batch norms, ReLU6, a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 1)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        features = features + self.depthwise(features)
        return self.head(features.mean((2, 3)))


class Transformer(nn.Module):
    """Patches, one encoder layer with layer norm, attention and GELU, the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return self.head(self.layer(tokens).mean(1))


def make_model(name: str, module: nn.Module, samples: int = 8, **dynamic: dict[int, str]) -> Model:
    """Captured, on 3 x 32 x 32 images, with `samples` for calibration."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, 32, 32, generator=generator) for _ in range(samples)]
    model = Model(
        name,
        module.eval(),
        {"image": images[0]},
        output_names=("logits",),
        calibration=tuple({"image": image} for image in images),
        dynamic=dynamic,
    )
    return Capture()(model)


def settled(module: Convolutional) -> Convolutional:
    """Batch norms with statistics of their own, so that a missing fold shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.copy_(torch.randn(child.num_features, generator=generator) * 0.1)
                child.running_var.copy_(torch.rand(child.num_features, generator=generator) * 0.5 + 0.5)
    return module


@pytest.fixture(scope="session")
def convolutional() -> Model:
    torch.manual_seed(0)
    return make_model("convolutional", settled(Convolutional()))


@pytest.fixture(scope="session")
def transformer() -> Model:
    torch.manual_seed(0)
    return make_model("transformer", Transformer())


@pytest.fixture(scope="session")
def captured() -> Callable[..., Model]:
    """`captured(name, module, dynamic..., samples=8)`: a Model of the test's own network on the same images."""
    return make_model
