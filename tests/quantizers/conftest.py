"""Small captured Models; made once for the folder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.model import Model


def captured(module: nn.Module, example: torch.Tensor, name: str, samples: int = 8) -> Model:
    graph = torch.export.export(module.eval(), (example,)).module()
    generator = torch.Generator().manual_seed(1)
    data = tuple({"x": torch.randn(example.shape, generator=generator)} for _ in range(2 * samples))
    return Model(name, graph, {"x": example}, ("y",), calibration=data[:samples], held_out=data[samples:])


class Residual(nn.Module):
    """Batch norms, ReLU6, a depthwise convolution, a one-sided padding, an addition and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8))
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(x))
        return self.head(stem + self.project(self.expand(stem)))


class Block(nn.Module):
    """LayerNorm, two linear layers with gelu between, a residual."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x * self.gain
        return self.down(nn.functional.gelu(self.up(self.norm(wide)))) + x


@pytest.fixture(scope="module")
def convnet() -> Model:
    torch.manual_seed(0)
    module = Residual()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return captured(module, torch.randn(1, 3, 16, 16), "convnet")


@pytest.fixture(scope="module")
def transformer() -> Model:
    torch.manual_seed(0)
    return captured(nn.Sequential(Block(), Block()), torch.randn(1, 6, 32), "transformer")


@pytest.fixture(scope="module")
def overflowing() -> Model:
    torch.manual_seed(0)
    return captured(Block(gain=200.0), torch.randn(1, 6, 32), "overflowing")


class Picking(nn.Module):
    """Four of many rows, those of the largest sums behind a linear layer, then a layer that sees these alone: rounding
    picks others now and then, or the same in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.up(self.norm(x))
        chosen = wide.sum(2).topk(4, dim=1).indices
        return self.down(wide.gather(1, chosen.unsqueeze(2).expand(-1, -1, 32)))


@pytest.fixture(scope="module")
def picking() -> Model:
    torch.manual_seed(0)
    return captured(Picking(), torch.randn(1, 200, 32), "picking")
