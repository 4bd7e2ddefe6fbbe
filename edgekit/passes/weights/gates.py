"""Gates over an encoder's heads, hidden units and layers: a factor each, learned together with its own noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.passes.transformer.block import EncoderBlock

# A gate begins open and nearly silent: sigma is a tenth of mu.
FIRST_LOG_SIGMA = -2.3


class InformationGate(nn.Module):
    """z = h (mu + sigma e), e ~ N(0, 1): what passes is bounded by the channel's capacity (Dai et al.,
    arXiv:1802.10399, equation 8; for transformers Dutta et al., VTrans, arXiv:2406.05276, section 3).

    `count` gates, each over `repeat` neighbouring channels of the last dimension.
    """

    def __init__(self, count: int, repeat: int = 1) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.ones(count))
        self.log_sigma = nn.Parameter(torch.full((count,), FIRST_LOG_SIGMA))
        self.repeat = repeat

    def forward(self, values: Tensor) -> Tensor:
        """[N, ..., count x repeat] -> the same; a sample draws its own noise in training, none in eval."""
        gate: Tensor = self.mu
        if self.training:
            noise = torch.randn(values.shape[0], *[1] * (values.dim() - 2), self.mu.shape[0])
            gate = gate + self.log_sigma.exp() * noise
        if self.mu.shape[0] > 1 and self.repeat > 1:
            gate = gate.repeat_interleave(self.repeat, -1)
        return values * gate

    @property
    def log_ratio(self) -> Tensor:
        """ln(mu^2 / sigma^2), [count]: what is low carries nothing."""
        return 2 * (self.mu.abs().clamp(min=1e-6).log() - self.log_sigma)

    @property
    def information(self) -> Tensor:
        """Nats that each gate lets through, [count] (Dai et al., equation 13)."""
        return 0.5 * torch.nn.functional.softplus(self.log_ratio)


class Gated(nn.Module):
    """A layer behind a gate. Its attributes stay those of the layer, which its block asks for their sizes."""

    def __init__(self, gate: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.gate, self.layer = gate, layer

    def forward(self, values: Tensor) -> Tensor:
        answer: Tensor = self.layer(self.gate(values))
        return answer


@dataclass(frozen=True)
class BlockGates:
    heads: InformationGate
    units: InformationGate
    layer: InformationGate

    def each(self) -> tuple[InformationGate, InformationGate, InformationGate]:
        return self.heads, self.units, self.layer


def gate_blocks(blocks: Sequence[EncoderBlock]) -> tuple[tuple[EncoderBlock, ...], tuple[BlockGates, ...]]:
    """Copies of `blocks` with a gate before the layers that mix heads and units, and one for both residual branches."""
    made, gates = [], []
    for block in copy.deepcopy(list(blocks)):
        own, feed = block.attention, block.feed_forward
        gate = BlockGates(
            InformationGate(own.heads, own.value.out_features // own.heads),
            InformationGate(feed.expand.out_features),
            InformationGate(1),
        )
        own.output = Gated(gate.heads, own.output)  # type: ignore[assignment]
        feed.contract = Gated(gate.units, feed.contract)  # type: ignore[assignment]
        block.scale1, block.scale2 = (nn.Sequential(old, gate.layer) for old in (block.scale1, block.scale2))
        made.append(block)
        gates.append(gate)
    return tuple(made), tuple(gates)


def fold_gates(block: EncoderBlock, gates: BlockGates) -> EncoderBlock:
    """`block` (ungated) with the gates' means in its weights: it answers as the gated one does in eval. A copy."""
    made = copy.deepcopy(block)
    own, feed = made.attention, made.feed_forward
    with torch.no_grad():
        layer = gates.layer.mu
        for linear, gate in ((own.output, gates.heads), (feed.contract, gates.units)):
            linear.weight.mul_(gate.mu.repeat_interleave(gate.repeat))
            linear.weight.mul_(layer)
            if linear.bias is not None:
                linear.bias.mul_(layer)
    return made
