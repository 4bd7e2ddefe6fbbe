"""The emulated machine, and bundles exported here for it."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
    from machine import Machine

SAMPLES = 6
CLASSES = 10


def _load_machine() -> Any:
    """tests/ is no package: the module beside this file is loaded by its path."""
    path = Path(__file__).with_name("machine.py")
    spec = importlib.util.spec_from_file_location("edgekit_arm64_machine", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def machine() -> Machine:
    """Skips with the reason where the machine cannot be had, unless EDGEKIT_REQUIRE_ARM64 asks for it."""
    module = _load_machine()
    emulated: Machine = module.Machine()
    try:
        emulated.prepare()
    except module.MachineUnavailableError as error:
        if os.environ.get("EDGEKIT_REQUIRE_ARM64"):
            pytest.fail(f"EDGEKIT_REQUIRE_ARM64 is set, and there is no emulated machine: {error}")
        pytest.skip(f"no emulated arm64 machine: {error}")
    return emulated


@dataclass(frozen=True)
class Case:
    """A bundle, the files that hold its samples, and what this machine answers: [SAMPLES, CLASSES]."""

    bundle: Path
    samples: tuple[Path, ...]
    answers: np.ndarray


def small_net() -> torch.nn.Module:
    """Every kernel that rounds: dense, depthwise and pointwise convolution, ReLU6, add, pooling, linear."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6())
            self.pointwise = nn.Conv2d(16, 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.pointwise(self.depthwise(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6())
            self.block = Block()
            self.last = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU6())
            self.classifier = nn.Linear(32, CLASSES)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features = self.last(self.block(self.stem(image)))
            scores: torch.Tensor = self.classifier(features.mean((2, 3)))
            return scores

    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return net


def make_samples(folder: Path) -> tuple[Path, ...]:
    """Images of smooth noise, each with its own colours: classes differ between them."""
    generator = np.random.default_rng(7)
    paths = []
    for index in range(SAMPLES):
        coarse = generator.normal(size=(1, 3, 4, 4)).astype(np.float32)
        image = coarse.repeat(8, axis=2).repeat(8, axis=3) + generator.normal(size=(1, 3, 1, 1)).astype(np.float32)
        paths.append(folder / f"sample{index}.npz")
        np.savez(paths[-1], image=image)
    return tuple(paths)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Parametrized by (format, quantizer): the bundle for a Raspberry Pi 4, and this machine's own answers."""
    import torch

    import edgekit

    format, quantizer = request.param
    folder = tmp_path_factory.mktemp(f"{format}-{quantizer}")
    samples = make_samples(folder)
    images = [{"image": torch.from_numpy(np.load(path)["image"])} for path in samples]
    bundle = folder / "net.edgekit"
    edgekit.export(
        small_net(),
        images[0],
        device="raspberry-pi-4",
        format=format,
        quantize=quantizer,
        calibration=images,
        max_drop=10.0,
        name="net",
        output=str(bundle),
    )
    with edgekit.load(bundle, threads=1) as session:
        rows = [session.run({"image": sample["image"].numpy()}) for sample in images]
    answers = np.concatenate([next(iter(row.values())) for row in rows])
    return Case(bundle, samples, answers)
