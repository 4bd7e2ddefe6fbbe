from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.bisection import candidate_layers, first_bad_layer, truncate
from edgekit.devices.device import Device, load_device
from edgekit.exporters.base import Artifact
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.side = nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x + self.side(y)


class BrokenExporter(OnnxExporter):
    """An exporter that gets one layer wrong, as a converter's bug would."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        self.broken = broken

    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        graph = model.copy_graph()
        for node in graph.graph.nodes:
            if node.name == self.broken:
                with graph.graph.inserting_after(node):
                    wrong = graph.graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.5))
                node.replace_all_uses_with(wrong, delete_user_cb=lambda user, wrong=wrong: user is not wrong)
        graph.recompile()
        return super().export(replace(model, module=graph), directory, device)


def captured() -> Model:
    torch.manual_seed(0)
    return Capture()(Model("chain", Chain(), {"x": torch.rand(1, 4), "y": torch.rand(1, 3)}))


def test_a_prefix_computes_what_the_whole_does_and_drops_the_inputs_it_does_not_need() -> None:
    model = captured()
    layer = candidate_layers(model)[1]
    prefix = truncate(model, layer)
    assert list(prefix.example_inputs) == ["x"]
    assert prefix.output_names == (layer,)
    values: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorder(model.graph).run(*model.args)
    assert torch.equal(prefix.forward(prefix.example_inputs)[layer], values[layer])


def test_the_first_bad_layer_is_found_and_no_other() -> None:
    model, device = captured(), load_device("x86-server")
    for wrong in (candidate_layers(model)[3], candidate_layers(model)[-1]):
        found = first_bad_layer(model, model, BrokenExporter(wrong), device, limit_db=40.0)
        assert found is not None
        assert found[0] == wrong
        assert found[1] < 40.0


def test_a_faithful_exporter_has_no_bad_layer() -> None:
    model = captured()
    assert first_bad_layer(model, model, OnnxExporter(), load_device("x86-server"), limit_db=40.0) is None
