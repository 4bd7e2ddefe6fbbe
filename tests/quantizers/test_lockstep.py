from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantization import Quantization
from edgekit.quantizers.lockstep import walk
from edgekit.quantizers.schemes import ONNX_ARM


class Counting(nn.Module):
    """What is compared is subtracted, which bool values cannot be: the cast is the model's own."""

    def forward(self, values: Tensor) -> Tensor:
        return (values > 0).to(torch.float32) - 0.5


def test_a_models_own_casts_run_where_it_is_walked_beside_itself() -> None:
    example = {"values": torch.tensor([[1.0, -1.0]])}
    graph = Capture()(Model(name="counting", module=Counting().eval(), example_inputs=example)).graph
    *_, last = walk(graph, graph, Quantization("none", ONNX_ARM), (example,))
    for values in (last.exact, last.rounded):
        assert values[0].tolist() == [[0.5, -0.5]]
