"""Graphs that move to another device leave nothing behind. Torch's device "meta", where tensors have shapes and no
values, stands for a GPU: like one it refuses to compute with what lies on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.runtimes.torch_engine import PRECISIONS
from edgekit.runtimes.torch_engine.check import program_graph, random_inputs
from edgekit.runtimes.torch_engine.precision import in_precision
from edgekit.runtimes.torch_engine.program import load_program
from edgekit.runtimes.torch_engine.runner import EagerRunner, to_device
from edgekit.runtimes.torch_engine.session import program_of

META = torch.device("meta")


class Making(nn.Module):
    """Positions and a mask that are made inside, on a device that the graph names; a constant; a move by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.register_buffer("shift", torch.arange(8.0))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        places = self.table(torch.arange(x.shape[1], device=x.device))
        mask = torch.ones(x.shape[1], x.shape[1]).tril()
        return (mask @ (x + places + self.shift.to(x.device)) + torch.tensor([1.0]),)


def made() -> tuple[GraphModule, tuple[Tensor, ...]]:
    x = torch.randn(2, 5, 8)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Making().eval(), (x,), dynamic_shapes=({0: batch},), strict=False)
    return program_graph(program), (x,)


def moved_entirely(graph: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        wanted = graph(*inputs)
        with pytest.raises((RuntimeError, NotImplementedError)):
            graph(*(value.to(META) for value in inputs))
        found = to_device(graph, META)(*(value.to(META) for value in inputs))
        again = graph(*inputs)
    for one, other, third in zip(found, wanted, again, strict=True):
        assert one.device == META and one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(other, third)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_graph_makes_and_keeps_moves_with_it(precision: str) -> None:
    graph, inputs = made()
    moved_entirely(in_precision(graph, precision)[0], inputs)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trained_transformer_moves_entirely(precision: str, vit: Bundle) -> None:
    part = vit.manifest.part("whole")
    program = load_program(vit.part_path(part.name).parent / program_of(vit, part).file)
    moved_entirely(in_precision(program_graph(program), precision)[0], random_inputs(program))


def test_an_evicted_graph_is_built_again_with_the_same_answers() -> None:
    graph, inputs = made()
    builds: list[GraphModule] = []

    def build() -> GraphModule:
        builds.append(GraphModule(graph, graph.graph))
        return builds[-1]

    runner = EagerRunner(build, torch.device("cpu"))
    assert runner.weight_bytes == 4 * (16 * 8 + 8 + 1)
    with torch.no_grad():
        runner.upload()
        first = runner.run(inputs)[0]
        runner.evict()
        runner.upload()
        np.testing.assert_array_equal(runner.run(inputs)[0].numpy(), first.numpy())
    assert len(builds) == 2


def test_on_a_gpu_the_copy_on_the_host_stays() -> None:
    graph, _ = made()
    builds: list[GraphModule] = []

    def build() -> GraphModule:
        builds.append(GraphModule(graph, graph.graph))
        return builds[-1]

    runner = EagerRunner(build, META)
    for _ in range(3):
        runner.upload()
        runner.evict()
    assert len(builds) == 1
    assert all(value.device.type == "cpu" for value in (*builds[0].parameters(), *builds[0].buffers()))
