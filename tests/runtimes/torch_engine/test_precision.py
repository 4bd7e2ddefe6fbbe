"""Graphs in other precisions: what is cast, what is quantized, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekit.runtimes.kernels.matmul_int4 import CENTRE, unpack
from edgekit.runtimes.torch_engine import ops
from edgekit.runtimes.torch_engine.precision import cast, in_precision, quantize_groups


def graph_of(module: nn.Module, *inputs: Tensor) -> GraphModule:
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in inputs),)
    wrapped = Tuple(module.eval())
    with torch.no_grad():
        program = torch.export.export(wrapped, inputs, dynamic_shapes=shapes, strict=False)
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


class Tuple(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.inner(*inputs)
        return found if isinstance(found, tuple) else (found,)


class Mixed(nn.Module):
    """Floats made from numbers, a literal that float16 does not hold, explicit float32, integers, a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.arange(64.0))

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x) + self.shift
        x = self.second(torch.nn.functional.layer_norm(x, (64,)).to(torch.float32)) + torch.ones(64)
        masked = x.masked_fill(x > 1e30, -3.4e38)
        return torch.softmax(masked, -1) * torch.zeros(x.shape[0], 64).cos(), ids * 2


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 64, generator=generator), torch.tensor([1, 2, 3])


@pytest.fixture
def mixed(inputs: tuple[Tensor, Tensor]) -> GraphModule:
    return graph_of(Mixed(), *inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_cast_graph_holds_one_float_and_keeps_its_ends(
    dtype: torch.dtype, mixed: GraphModule, inputs: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad():
        found = cast(mixed, dtype)
        seen = dtypes_inside(found, inputs)
        got, wanted = found(*inputs), mixed(*inputs)
    assert {value for value in seen if value.is_floating_point} == {dtype, torch.float32}
    assert [value.dtype for value in got] == [torch.float32, torch.int64]
    assert torch.equal(got[1], wanted[1])
    # probabilities below 1, after some twenty operators that each round by half an ulp of values near 1
    torch.testing.assert_close(got[0], wanted[0], atol=20 * max(torch.finfo(dtype).eps, 2.0**-23), rtol=0)


def dtypes_inside(graph: GraphModule, inputs: tuple[Tensor, ...]) -> set[torch.dtype]:
    seen: set[torch.dtype] = set()

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                seen.add(value.dtype)
            return value

    Watching(graph).run(*inputs)
    return seen


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "w4a16"])
def test_the_given_graph_stays_as_it_was(precision: str, mixed: GraphModule, inputs: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        before, code = mixed(*inputs)[0], mixed.code
        in_precision(mixed, precision)
        assert mixed.code == code and torch.equal(mixed(*inputs)[0], before)


class Turned(nn.Module):
    """A weight of [inputs, outputs], as in GPT-2, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(64, 40)), nn.Parameter(torch.randn(40))
        self.other = nn.Parameter(torch.randn(40, 32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight) @ self.other


SCENES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "linear, twice the same weight": (
        lambda: nn.Sequential(*[nn.Linear(64, 64)] * 2),
        (3, 64),
        {"int8": 2, "w4a16": 2},
    ),
    "linear of sequences": (lambda: nn.Linear(96, 5, bias=False), (2, 7, 96), {"int8": 1, "w4a16": 1}),
    "addmm and matmul": (Turned, (3, 64), {"int8": 2, "w4a16": 1}),
    "inputs that divide into no group": (lambda: nn.Linear(37, 5), (3, 37), {"int8": 1, "w4a16": 0}),
    "no product": (nn.ReLU, (3, 8), {"int8": 0, "w4a16": 0}),
}


@pytest.mark.parametrize("precision", ["int8", "w4a16"])
@pytest.mark.parametrize("name", SCENES)
def test_products_with_constants_are_quantized_whatever_they_are_called(name: str, precision: str) -> None:
    make, shape, counts = SCENES[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    graph = graph_of(make(), x)
    with torch.no_grad():
        found, count = in_precision(graph, precision)
        got, wanted = found(x)[0], graph(x)[0]
    assert count == counts[precision]
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    # of normal values: a step of 1/127 of 5 deviations, or 1/7 of 3, over the root of 12; x by row, weights; two layers
    step = (5 / 127 if precision == "int8" else 3 / 7) / 12**0.5
    error = (got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert float(error) <= 2 * step + 2 * 2.0**-8 * (precision == "w4a16")


@pytest.mark.parametrize("precision", ["int8", "w4a16"])
def test_the_float_weight_of_a_quantized_product_is_dropped(precision: str) -> None:
    x = torch.randn(3, 64)
    found, _ = in_precision(graph_of(nn.Linear(64, 256, bias=False), x), precision)
    tensors = [*found.parameters(), *found.buffers()]
    bytes_a_weight = {"int8": 1 + 4 / 64, "w4a16": 0.5 + 2 / 32}[precision]
    assert sum(value.nbytes for value in tensors) == 64 * 256 * bytes_a_weight


def test_groups_lose_no_more_than_plain_rounding_and_fit_the_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 96, generator=generator)
    weight[0] = 0
    found = quantize_groups(weight)
    assert found is not None
    packed, scales = found
    assert packed.shape == (24, 48) and packed.dtype == torch.uint8
    assert scales.shape == (24, 3) and scales.dtype == torch.bfloat16
    restored = (unpack(packed).float() - CENTRE).reshape(24, 3, 32) * scales.float()[..., None]
    plain = (weight.reshape(24, 3, 32).abs().amax(-1, keepdim=True) / 7).bfloat16().float().clamp(min=1e-9)
    rounded = torch.clamp(torch.round(weight.reshape(24, 3, 32) / plain), -8, 7) * plain
    error, usual = ((one - weight.reshape(24, 3, 32)).square().sum() for one in (restored, rounded))
    assert error < usual
    assert torch.equal(restored[0], torch.zeros(3, 32))


def test_torchs_own_int8_product_gives_the_references_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ops.int_mm_is_exact():
        pytest.skip("torch has no exact int8 product for this processor: the reference is what runs")
    generator = torch.Generator().manual_seed(0)
    for rows, outputs, inputs in ((1, 1, 1), (5, 19, 37), (17, 33, 130), (0, 4, 8)):
        x = torch.randn(rows, inputs, generator=generator)
        weight = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
        scales, bias = torch.rand(outputs, generator=generator), torch.randn(outputs, generator=generator)
        fast = torch.ops.edgekit.linear_w8a8(x, weight, scales, bias)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "int_mm_is_exact", lambda: False)
            assert torch.equal(torch.ops.edgekit.linear_w8a8(x, weight, scales, bias), fast)


@pytest.mark.parametrize("operator", ["linear_w8a8", "linear_w4a16"])
def test_the_operators_tell_torch_their_shapes(operator: str) -> None:
    x = torch.randn(2, 5, 64)
    if operator == "linear_w8a8":
        arguments = (x, torch.zeros(6, 64, dtype=torch.int8), torch.ones(6), torch.zeros(6))
    else:
        arguments = (x.bfloat16(), torch.zeros(6, 32, dtype=torch.uint8), torch.ones(6, 2).bfloat16(), None)
    torch.library.opcheck(getattr(torch.ops.edgekit, operator).default, arguments)
