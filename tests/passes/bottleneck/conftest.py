"""A tiny classifier of pictures, cut in two, and a tiny vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle.manifest import Postprocess, Preprocess
from edgekit.model import Model, Source
from edgekit.passes.capture import Capture
from edgekit.passes.fold import FoldBatchNorm
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.zoo.fashion import FashionVit

CLASSES = ("round", "square", "long")
PREPROCESS = Preprocess(mode="L", resize=12, crop=12, interpolation="bilinear", mean=(127.5,), std=(127.5,))


class TinyNet(nn.Module):
    """[B, 1, 12, 12] -> [B, 3]; the middle is a linear convolution's output [B, 8, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.narrow = nn.Conv2d(12, 8, 1)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        narrow = self.narrow(torch.relu(self.stem(image)))
        logits: torch.Tensor = self.last(torch.relu(self.wide(narrow)).mean((2, 3)))
        return logits


def smooth_images(count: int, seed: int) -> torch.Tensor:
    """[count, 1, 12, 12], neighbours alike as in pictures."""
    coarse = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (12, 12), mode="bilinear")


def build() -> Model:
    torch.manual_seed(0)
    net = TinyNet().eval()
    with torch.no_grad():
        net.last.weight *= 40  # an untrained net hardly tells pictures apart
    images, held = smooth_images(64, 1), smooth_images(32, 2)
    model = Model(
        "tiny",
        net,
        {"image": images[:1]},
        ("logits",),
        task="image-classification",
        dynamic={"image": {0: "batch"}},
        calibration=tuple({"image": image[None]} for image in images),
        held_out=tuple({"image": image[None]} for image in held),
        preprocess=PREPROCESS,
        postprocess=Postprocess(kind="classification", output="logits", labels=CLASSES),
        source=Source("module", "tiny", "d1" * 32),
    )
    return FoldBatchNorm()(Capture()(model))


@pytest.fixture(scope="session")
def tiny() -> Model:
    return build()


@pytest.fixture(scope="session")
def many(stages: tuple[Model, Model]) -> np.ndarray:
    """What crosses for 600 images: so few parameters do not learn them by heart."""
    with torch.no_grad():
        crossing: torch.Tensor = stages[0].graph(smooth_images(600, 3))[0]
    return crossing.numpy()


@pytest.fixture(scope="session")
def stages(tiny: Model) -> tuple[Model, Model]:
    head, tail = split(tiny, [find_cut(tiny, "narrow")])
    return head, tail


@pytest.fixture
def unshipped(stages: tuple[Model, Model]) -> tuple[Model, Model]:
    """Of a source that no checkpoint knows."""
    return tuple(replace(stage, source=Source("module", "tiny", "")) for stage in stages)  # type: ignore[return-value]


def grey_pictures(count: int, seed: int = 1) -> torch.Tensor:
    """float32 [count, 1, 28, 28], neighbours alike as in pictures."""
    coarse = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (28, 28), mode="bilinear")


@pytest.fixture(scope="session")
def pictures() -> Callable[..., torch.Tensor]:
    return grey_pictures


@pytest.fixture(scope="session")
def vit() -> Model:
    """50 tokens of width 16, three blocks, not captured."""
    torch.manual_seed(0)
    net = FashionVit(width=16, depth=3, heads=2).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("weight") and value.dim() == 2:
                value *= 2  # an untrained net hardly tells pictures apart
    return Model(
        "tiny-vit",
        net,
        {"image": grey_pictures(1)},
        ("logits",),
        task="image-classification",
        dynamic={"image": {0: "batch"}},
        calibration=tuple({"image": image[None]} for image in grey_pictures(64, 1)),
        held_out=tuple({"image": image[None]} for image in grey_pictures(24, 2)),
        source=Source("module", "tiny-vit", "e5" * 32),
    )


@pytest.fixture(scope="session")
def token_stages(vit: Model) -> tuple[Model, Model]:
    captured = FoldBatchNorm()(Capture()(vit))
    head, tail = split(captured, [find_cut(captured, "blocks.0")])
    return head, tail


@pytest.fixture(scope="session")
def many_tokens(token_stages: tuple[Model, Model]) -> np.ndarray:
    """What crosses for 400 pictures."""
    with torch.no_grad():
        crossing: torch.Tensor = token_stages[0].graph(grey_pictures(400, 3))[0]
    return crossing.numpy()
