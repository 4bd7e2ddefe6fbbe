"""The check at start finds code that computes something else, and lets rounding in another order pass."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgekit.errors import NumericsError
from edgekit.runtimes.torch_engine.check import LONGEST, ROWS, Truth, program_graph, random_inputs
from edgekit.runtimes.torch_engine.precision import in_precision


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.layers(x)
        return logits, logits.argmax(-1)


def program_of(module: nn.Module, *inputs: Tensor, **dims: Dim) -> ExportedProgram:
    batch = dims.get("batch", Dim("batch", min=1))
    shapes = tuple({0: batch} for _ in inputs)
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)


def truth_in(precision: str, module: nn.Module | None = None) -> Truth:
    program = program_of(module or Net(), torch.randn(2, 256))
    return Truth.of(program, in_precision(program_graph(program), precision)[0], precision)


PRECISIONS = ("fp32", "bf16", "fp16", "int8", "w4a16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sums_in_another_order_pass(precision: str) -> None:
    """The inputs of the first layer reversed, and its weights with them."""
    truth = truth_in(precision)
    net = Net()
    with torch.no_grad():
        net.layers[0].weight.copy_(net.layers[0].weight.flip(1))
        program = program_of(net, torch.randn(2, 256))
        other, _ = in_precision(program_graph(program), precision)
        found = other(truth.inputs[0].flip(1))
    assert truth.disagreement(found) == ""


WRONG: dict[str, tuple[Callable[[Tensor, Tensor], list[Tensor]], str]] = {
    "an output too few": (lambda y, best: [y], "1 outputs, the program has 2"),
    "another dtype": (lambda y, best: [y.half(), best], r"torch.float16 \[3, 10\], allowed torch.float32"),
    "a row too few": (lambda y, best: [y[:2], best], r"\[2, 10\], allowed torch.float32 \[3, 10\]"),
    "two columns exchanged": (lambda y, best: [y[:, [1, 0, *range(2, 10)]], best], "output 0 is off by"),
    "a row of another": (lambda y, best: [y[[0, 1, 1]], best], "output 0 is off by"),
    "one NaN": (lambda y, best: [torch.where(y == y.max(), torch.nan, y), best], "output 0 is off by inf"),
    "another class": (lambda y, best: [y, (best + 1) % 10], "output 1 is off by"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WRONG)
def test_other_answers_are_found_in_every_precision(name: str, precision: str) -> None:
    change, told = WRONG[name]
    truth = truth_in(precision)
    y, best = truth.eager
    reason = truth.disagreement(change(y.clone(), best.clone()))
    assert re.search(told, reason), reason


def test_a_coarser_precision_is_not_taken_for_a_finer_one() -> None:
    truth = truth_in("fp32")
    for precision in ("bf16", "fp16", "int8", "w4a16"):
        other = truth_in(precision)
        assert "off by" in truth.disagreement(other.eager)
    assert truth.sqnr_db > truth_in("fp16").sqnr_db > truth_in("bf16").sqnr_db > truth_in("w4a16").sqnr_db


class Overflowing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 300).square().sum(-1)


def test_a_precision_that_overflows_is_refused_and_one_that_does_not_is_named() -> None:
    with pytest.raises(NumericsError, match="fp16 the program gives NaN or infinity") as caught:
        truth_in("fp16", Wrapped(Overflowing()))
    assert "bf16" in caught.value.hint
    truth_in("bf16", Wrapped(Overflowing()))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.inner(x),)


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 4)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.table(ids),)


def test_random_inputs_are_within_the_programs_bounds_and_any_table() -> None:
    ids = torch.zeros(5, 6, dtype=torch.int64)
    length, batch = Dim("length", min=2, max=6), Dim("batch", min=4, max=9)
    program = torch.export.export(Ids(), (ids,), dynamic_shapes=({0: batch, 1: length},), strict=False)
    (made,) = random_inputs(program)
    assert made.shape == (max(4, ROWS), min(6, LONGEST)) and made.dtype == torch.int64
    assert set(made.flatten().tolist()) == {0, 1}
    with torch.no_grad():
        program_graph(program)(made)


def test_the_inputs_are_the_same_at_every_start() -> None:
    program = program_of(Net(), torch.randn(2, 256))
    assert torch.equal(random_inputs(program)[0], random_inputs(program)[0])
