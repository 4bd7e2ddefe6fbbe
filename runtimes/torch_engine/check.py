"""Compiled code against the eager form of the same graph, once, on random inputs.

How far two orders of the same sums may lie apart depends on the net. So the tolerance is measured on it: the eager form
in the served precision lies at a distance e from the float64 answers, which is what rounding does in this net at this
precision. Compiled code rounds as often, elsewhere: at most a few times as far from the truth, ROUNDINGS e, and by the
triangle inequality (ROUNDINGS + 1) e from the eager form. Below that lies the resolution of the served dtype itself,
for nets in which the eager form happens to round nothing. Distances are root mean squares over all values of an output;
integers, which have no such distance, may differ in as many places as the eager form's differ from the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgekit.errors import NumericsError, SessionError
from edgekit.runtimes.torch_engine.precision import DTYPES, cast

ROUNDINGS = 3.0
# Neither a bucket nor a multiple of a vector: what is wrong at the edges shows.
ROWS = 3
LONGEST = 8


@dataclass(frozen=True)
class Truth:
    """Random `inputs` of one program, the float64 answers, and those of the eager form in the served precision."""

    inputs: tuple[Tensor, ...]
    exact: tuple[Tensor, ...]
    eager: tuple[Tensor, ...]
    precision: str

    @classmethod
    def of(cls, program: ExportedProgram, eager: GraphModule, precision: str) -> Truth:
        """On the processor. Raises NumericsError where the precision, and not float64, gives NaN or infinity."""
        inputs = random_inputs(program)
        with torch.no_grad():
            exact = tuple(cast(program_graph(program), torch.float64)(*inputs))
            served = tuple(eager(*inputs))
        for one, wanted in zip(served, exact, strict=True):
            if wanted.is_floating_point() and bool((wanted.isfinite() & ~one.isfinite()).any()):
                raise NumericsError(
                    f"in {precision} the program gives NaN or infinity on random inputs, in float64 it does not",
                    hint="--precision bf16 has the range of float32, fp32 rounds least",
                )
        return cls(inputs, exact, served, precision)

    def disagreement(self, found: Sequence[Tensor]) -> str:
        """Why `found`, the same inputs' answers of other code, are not those of this net, or ""."""
        if len(found) != len(self.eager):
            return f"{len(found)} outputs, the program has {len(self.eager)}"
        for index, (one, eager, exact) in enumerate(zip(found, self.eager, self.exact, strict=True)):
            one = one.to(eager.device)
            if one.shape != eager.shape or one.dtype != eager.dtype:
                return f"output {index} is {one.dtype} {list(one.shape)}, allowed {eager.dtype} {list(eager.shape)}"
            distance, allowed = _distance(one, eager), self._allowed(eager, exact)
            if not distance <= allowed:
                return f"output {index} is off by {distance:.3g}, allowed {allowed:.3g}"
        return ""

    def _allowed(self, eager: Tensor, exact: Tensor) -> float:
        rounding = _distance(eager, exact)
        if not eager.is_floating_point():
            return rounding
        size = _distance(eager, torch.zeros_like(eager))
        return (ROUNDINGS + 1) * rounding + ROUNDINGS * torch.finfo(DTYPES[self.precision]).eps * size

    @property
    def sqnr_db(self) -> float:
        """Of the eager form against float64, the worst output; infinity where nothing differs."""
        worst = float("inf")
        for eager, exact in zip(self.eager, self.exact, strict=True):
            if eager.is_floating_point() and (noise := _distance(eager, exact)) > 0:
                signal = _distance(exact, torch.zeros_like(exact))
                worst = min(worst, float(20 * torch.log10(torch.tensor(signal / noise))))
        return worst


def _distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference over what is finite in `other`; of integers the share that differs; infinity
    where one is finite and the other is not."""
    if not other.is_floating_point():
        return float((one != other).double().mean()) if other.numel() else 0.0
    a, b = one.double(), other.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite):
        return float("inf")
    return float((a - b)[finite].square().mean().sqrt()) if bool(finite.any()) else 0.0


def program_graph(program: ExportedProgram) -> GraphModule:
    """Positional tensors in, a flat tuple out; no guards."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def random_inputs(program: ExportedProgram, rows: int = ROWS) -> tuple[Tensor, ...]:
    """Normal floats, integers of 0 and 1 (what any table and any mask has). An open first dimension is `rows`, another
    one at most LONGEST, both within the program's own bounds."""
    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, int] = {}
    inputs = []
    for value in input_values(program).values():
        shape = [_size(program, size, rows if dim == 0 else LONGEST, sizes) for dim, size in enumerate(value.shape)]
        if value.is_floating_point():
            inputs.append(torch.randn(shape, generator=generator).to(value.dtype))
        else:
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(value.dtype))
    return tuple(inputs)


def _size(program: ExportedProgram, size: int | torch.SymInt, wanted: int, known: dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    if str(size) not in known:
        bounds = {str(symbol): one for symbol, one in program.range_constraints.items()}.get(str(size))
        if bounds is None:
            raise SessionError(
                f"the program ties an input's size to others, {size}",
                hint="export the model with plain open dimensions",
            )
        least, most = int(bounds.lower), min(bounds.upper, 1 << 30)
        known[str(size)] = int(min(max(wanted, least), most))
    return known[str(size)]


def input_values(program: ExportedProgram) -> Mapping[str, Tensor]:
    """The program's inputs in order, as fake tensors: dtype, and a shape in which open dimensions are symbols."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return {str(name): values[str(name)] for name in program.graph_signature.user_inputs}
