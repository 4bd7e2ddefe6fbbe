"""Packages: what their key stands for, weights that come and go, a cache that two processes fill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.runtimes.torch_engine import compiled
from edgekit.runtimes.torch_engine.check import Truth, program_graph
from edgekit.runtimes.torch_engine.compiled import (
    PACKAGE,
    STATE,
    WEIGHTS,
    Package,
    Target,
    Workshop,
    compile_graph,
    find_package,
    processor,
)
from edgekit.runtimes.torch_engine.lane import Lane
from edgekit.runtimes.torch_engine.precision import in_precision
from edgekit.runtimes.torch_engine.runner import CompiledRunner
from edgekit.runtimes.torch_engine.streams import Processor
from edgekit.tensors import TensorSpec

CPU = torch.device("cpu")
FLOAT = Target(CPU, "fp32", weights_outside=False)
DIGEST = "0" * 64


def test_a_key_stands_for_program_precision_and_where_the_weights_lie() -> None:
    keys = {
        FLOAT.key(DIGEST),
        FLOAT.key("1" * 64),
        replace(FLOAT, precision="bf16").key(DIGEST),
        replace(FLOAT, weights_outside=True).key(DIGEST),
    }
    assert len(keys) == 4 and FLOAT.key(DIGEST) in keys


@pytest.mark.parametrize("fact", ["processor", "torch"])
def test_another_processor_or_torch_has_keys_of_its_own(fact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FLOAT.key(DIGEST)
    if fact == "processor":
        monkeypatch.setattr(compiled, "processor", lambda: "x86_64 sse2")
    else:
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert FLOAT.key(DIGEST) != before


def test_a_processor_is_known_by_its_whole_instruction_set(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: sse2 avx2 avx512_vnni\nprocessor: 1\nflags\t\t: sse2\n")
    assert processor(info).endswith(" avx2 avx512_vnni sse2")
    info.write_text("processor: 0\nFeatures\t: fp asimd\n")
    assert processor(info).endswith(" asimd fp")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Truth]:
    """A package with its weights outside, int8 products and a float layer in it, as for a GPU, for the processor."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    batch = torch.export.Dim("batch", min=1)
    inputs = (torch.randn(2, 3, 8, 8),)
    program = torch.export.export(Tuple(module), inputs, dynamic_shapes=(({0: batch},),), strict=False)
    graph, count = in_precision(program_graph(program), "int8")
    assert count == 1
    truth = Truth.of(program, graph, "int8")
    folder = tmp_path_factory.mktemp("outside")
    compile_graph(program, graph, truth, Target(CPU, "int8", weights_outside=True), folder)
    return Package(folder), truth


class Tuple(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner(*inputs),)


def test_weights_outside_come_and_go_and_the_answers_stay(scene: tuple[Package, Truth]) -> None:
    package, truth = scene
    runner = CompiledRunner(package, CPU)
    names = {name for name, value in package.weights().items() if value.dtype == torch.int8}
    assert len(names) == 1 and runner.weight_bytes == sum(value.nbytes for value in package.weights().values())
    runner.upload()
    first = runner.run(truth.inputs)
    assert truth.disagreement(first) == ""
    for _ in range(3):
        runner.evict()
        assert not runner._on_device
        scratch = [torch.full((64, 1024), 7.0) for _ in range(8)]  # takes memory that the weights gave back
        runner.upload()
        assert torch.equal(runner.run(truth.inputs)[0], first[0])
        del scratch


def test_a_lane_runs_a_package_padded_and_after_an_eviction(scene: tuple[Package, Truth]) -> None:
    """What a GPU does, without its streams: buckets, weights outside, and the same rows whatever stands beside them."""
    package, truth = scene
    runner = CompiledRunner(package, CPU)
    inputs, outputs = [TensorSpec("x", "float32", ("batch", 3, 8, 8))], [TensorSpec("y", "float32", ("batch", 10))]
    lane = Lane(runner, inputs, outputs, (1, 2, 4), Processor())
    images = np.resize(truth.inputs[0].numpy(), (7, 3, 8, 8))
    for _ in range(2):
        runner.upload()
        for rows in range(1, 8):
            (found,) = lane.run([images[:rows]])
            wanted = np.resize(truth.eager[0].numpy(), (rows, 10))
            assert found.shape == wanted.shape
            # one int8 step apart where a sum in another order rounds to the other side
            assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 127
        lane.release()
        runner.evict()


def test_weights_of_another_program_are_refused(scene: tuple[Package, Truth], tmp_path: Path) -> None:
    package, _ = scene
    (tmp_path / PACKAGE).write_bytes(package.path.read_bytes())
    torch.save({"else": torch.zeros(3)}, tmp_path / WEIGHTS)
    with pytest.raises(RuntimeError, match="does not have"):
        CompiledRunner(Package(tmp_path), CPU).upload()


def test_of_two_that_made_one_package_the_first_stands(tmp_path: Path) -> None:
    first, second = Workshop(tmp_path, "key"), Workshop(tmp_path, "key")
    for workshop, content in ((first, b"first"), (second, b"second")):
        (workshop.folder / PACKAGE).write_bytes(content)
    assert first.publish().path.read_bytes() == b"first"
    assert second.publish().path.read_bytes() == b"first"
    assert sorted(path.name for path in (tmp_path / "torch").iterdir()) == ["key"]


def test_what_failed_its_check_is_remembered_with_the_reason(tmp_path: Path) -> None:
    assert find_package(tmp_path, "key") is None
    Workshop(tmp_path, "key").publish("off by 3")
    found = find_package(tmp_path, "key")
    assert found is not None and found.trouble == "off by 3"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"trouble"'])
def test_a_state_that_cannot_be_read_is_no_package(content: str, tmp_path: Path) -> None:
    package = Workshop(tmp_path, "key").publish()
    (package.folder / STATE).write_text(content)
    assert find_package(tmp_path, "key") is None
    assert Workshop(tmp_path, "key").publish("made anew").trouble == "made anew"


def test_what_is_damaged_is_replaced(tmp_path: Path) -> None:
    Workshop(tmp_path, "key").publish("damaged")
    assert Workshop(tmp_path, "key", replace=True).publish().trouble == ""
    found = find_package(tmp_path, "key")
    assert found is not None and found.trouble == ""
