from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.progress import silent
from edgekit.quantization import Quantization
from edgekit.quantizers.lockstep import walk
from edgekit.quantizers.quantize import QuantizerOptions, quantize
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


class Comparing(nn.Module):
    """Its own cast to float32 follows the network to fp16, and stays as it is in the float network."""

    def forward(self, values: Tensor) -> Tensor:
        return (values > 0).to(torch.float32) @ values.softmax(-1)


def test_each_graph_runs_in_its_own_dtypes() -> None:
    example = {"values": torch.randn(4, 4)}
    exact = Capture()(Model("comparing", Comparing().eval(), example, held_out=(example,)))
    half = quantize(exact, "fp16", ONNX_ARM, QuantizerOptions(), (), silent)
    assert half.quantization is not None
    products = [
        (pair.exact[0], pair.rounded[0])
        for pair in walk(exact.graph, half.graph, half.quantization, (example,))
        if pair.node.target is torch.ops.aten.matmul.default
    ]
    assert [(one.dtype, other.dtype) for one, other in products] == [(torch.float32, torch.float16)]
    assert torch.equal(products[0][0], exact.forward(example)["output"])
    assert torch.allclose(products[0][0], products[0][1].float(), atol=4e-3)
