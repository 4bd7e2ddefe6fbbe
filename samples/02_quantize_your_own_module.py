"""A module of your own, trained for some seconds, calibrated on a DataLoader, quantized and compared with the float.

python samples/02_quantize_your_own_module.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import edgekit
from edgekit.report.metrics import sqnr_db


class Denoiser(nn.Module):
    """Convolutions that take the noise out of a signal [N, 1, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 1, 1)
        )

    def forward(self, signal: Tensor) -> Tensor:
        clean: Tensor = self.layers(signal)
        return clean


def waves(count: int) -> Tensor:
    """[count, 1, 256]: sines of random frequency and phase."""
    time = torch.linspace(0, 6.28, 256)
    return torch.sin(time * (1 + 9 * torch.rand(count, 1)) + 6 * torch.rand(count, 1)).unsqueeze(1)


def train(module: nn.Module, steps: int) -> None:
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(steps):
        clean = waves(32)
        loss = nn.functional.mse_loss(module(clean + 0.3 * torch.randn_like(clean)), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    module = Denoiser()
    train(module, steps=300)
    module.eval()
    clean = waves(96)
    signals = clean + 0.3 * torch.randn_like(clean)
    with tempfile.TemporaryDirectory() as folder:
        bundle = edgekit.export(
            module,
            signals[:1],
            device="raspberry-pi-5",
            calibration=DataLoader(TensorDataset(signals[1:]), batch_size=8),
            format="onnx",
            quantize="int8",
            max_drop=5.0,
            output=str(Path(folder) / "denoiser.edgekit"),
        )
        with edgekit.load(bundle) as session:
            quantized = session.run({"signal": signals[:1].numpy()})["output"]
    with torch.no_grad():
        expected = module(signals[:1]).numpy()
    part = bundle.manifest.part()
    print(f"{part.format}, {part.precision}, {part.size_bytes} bytes, kept in float: {len(bundle.manifest.fallbacks)}")
    print(f"signal against truth: {sqnr_db(clean[:1].numpy(), signals[:1].numpy()):.1f} dB before")
    print(f"  {sqnr_db(clean[:1].numpy(), expected):.1f} dB after the float module")
    print(f"  {sqnr_db(clean[:1].numpy(), quantized):.1f} dB after the int8 artifact")
    print(f"int8 against float: {sqnr_db(expected, quantized):.1f} dB")


if __name__ == "__main__":
    main()
