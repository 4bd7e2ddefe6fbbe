"""Capture: a torch module becomes a torch.export graph of aten operators, inputs and outputs flat and in order."""

from __future__ import annotations

import copy
import io
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes

from edgekit.errors import CaptureError, EdgekitError, NumericsError
from edgekit.model import Model, Sample, forward_arguments
from edgekit.passes.base import Pass
from edgekit.progress import Progress

TORCH_HOME = Path(torch.__file__).parent

# What torch.export says -> what usually mends it. The first key found in the message wins.
REMEDIES = {
    "data-dependent": "a shape or a branch depends on values; compute it outside the model, or use torch.where / "
    "torch.cond and fixed-size outputs (top-k instead of a boolean mask)",
    "datadependent": "a shape or a branch depends on values; compute it outside the model, or use torch.where / "
    "torch.cond and fixed-size outputs (top-k instead of a boolean mask)",
    "unbacked": "a size depends on values (nonzero, masked_select, unique): give the output a fixed size",
    "constraint": "an input dimension declared dynamic is fixed by the model: leave it out of `dynamic`",
    "specializ": "an input dimension declared dynamic is fixed by the model: leave it out of `dynamic`",
    "numpy": "keep to torch operations inside forward: numpy leaves the graph",
    "missing a required argument": "the example inputs do not match forward's arguments",
    "positional argument": "the example inputs do not match forward's arguments",
    "reduction dim": "run the module once on the example inputs in eager mode: the shapes do not fit",
    "shape": "run the module once on the example inputs in eager mode: the shapes do not fit",
}

# Checks that torch.export leaves in the graph: they compute nothing and no format has them.
ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")


@dataclass(frozen=True)
class Capture(Pass):
    """torch.export of a copy of the module in eval mode. A Model that is captured already passes through."""

    def requires(self, model: Model) -> None:
        buffers = {name for name, _ in model.module.named_buffers()}
        for name, value in model.module.state_dict().items():
            # A mask keeps minus infinity in a buffer on purpose; NaN is never meant.
            broken = torch.isnan(value) if name in buffers else ~torch.isfinite(value)
            if value.is_floating_point() and broken.any():
                raise NumericsError(
                    f"the weight {name!r} holds NaN or infinity",
                    hint="the checkpoint is damaged or diverged in training",
                )

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        if isinstance(model.module, torch.fx.GraphModule):
            return model, "captured before"
        module = copy.deepcopy(model.module).eval()
        program = _export(module, model, model.dynamic)
        names = _output_names(program)
        graph = flatten(program)
        outputs = graph.graph.output_node().args[0]
        assert isinstance(outputs, tuple)
        if len(model.output_names) == len(outputs):
            names = model.output_names
        elif len(names) != len(outputs):
            names = ("output",) if len(outputs) == 1 else tuple(f"output_{index}" for index in range(len(outputs)))
        operators = sum(node.op == "call_function" for node in graph.graph.nodes)
        return model.evolve_quietly(module=graph, output_names=names), f"{operators} operators"

    def ensures(self, before: Model, after: Model) -> None:
        after.forward(after.example_inputs)


def export_program(model: Model, graph: torch.fx.GraphModule | None = None, *, static: bool = False) -> ExportedProgram:
    """The captured Model (or `graph` in its place) as an ExportedProgram, for exporters to lower.

    `static` fixes every dimension at the example's size. Raises CaptureError.
    """
    return _export(graph or model.graph, model, {} if static else model.dynamic)


def flatten(program: ExportedProgram) -> torch.fx.GraphModule:
    """The program's graph with positional tensor inputs and a flat tuple of tensor outputs, checks removed."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    graph.graph.set_codegen(torch.fx.graph.CodeGen())
    output = graph.graph.output_node()
    leaves = torch.utils._pytree.tree_leaves(output.args[0])
    kept: list[torch.fx.Node] = []
    for leaf in leaves:
        if isinstance(leaf, torch.fx.Node) and isinstance(leaf.meta.get("val"), Tensor) and leaf not in kept:
            kept.append(leaf)
    output.args = (tuple(kept),)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and any(name in str(node.target) for name in ASSERTIONS):
            graph.graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:
            # An attention kernel that a converter puts in place of another lays its result out differently.
            node.target = torch.ops.aten.reshape.default
    graph.graph.eliminate_dead_code()
    # A new module leaves behind the hook that checks inputs against the old signature.
    return torch.fx.GraphModule(graph, graph.graph, class_name="Captured")


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """The keys, where the module returns a mapping."""
    leaves = torch.utils._pytree.tree_leaves(program.graph.output_node().args[0])
    outputs = torch.utils._pytree.tree_unflatten(leaves, program.call_spec.out_spec)
    if not isinstance(outputs, Mapping):
        return ()
    return tuple(str(key) for key, value in outputs.items() if isinstance(value, torch.fx.Node))


def widen(model: Model) -> Sample:
    """The example inputs with every dynamic dimension at 2 or more: torch.export would fix a size of 1."""
    return {
        name: widen_dimensions(value, tuple(model.dynamic.get(name, {})))
        for name, value in model.example_inputs.items()
    }


def widen_dimensions(value: Tensor, dims: tuple[int, ...]) -> Tensor:
    for dim in dims:
        if value.shape[dim] < 2:
            value = value.repeat_interleave(2, dim)
    return value


def _export(module: torch.nn.Module, model: Model, dynamic: dict[str, dict[int, str]]) -> ExportedProgram:
    sample = widen(model) if dynamic else model.example_inputs
    args, kwargs = forward_arguments(module, sample)
    symbols = {name: Dim(name, min=1) for dims in dynamic.values() for name in dims.values()}
    shapes: Any = None
    if dynamic:
        by_input = {name: {dim: symbols[s] for dim, s in dynamic.get(name, {}).items()} for name in sample}
        shapes = by_input if kwargs else tuple(by_input.values())
    try:
        with torch.no_grad(), _quiet_torch():
            try:
                return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
            except UserError as error:
                bounded = _bounded(shapes, error)
            return torch.export.export(module, args, kwargs, dynamic_shapes=bounded, strict=False)
    except EdgekitError:
        raise
    except Exception as error:  # torch.export raises anything, the user's own exceptions included
        raise _explain(error) from error


def _bounded(shapes: Any, error: UserError) -> Any:
    """`shapes` with the upper limits that the model itself sets (a table of 512 positions, say).

    Raises `error` again where it asks for anything else: a dimension that turns out fixed is not dynamic.
    """
    fixes = str(error).partition("Suggested fixes:")[2].partition("\n\n")[0].strip()
    if not shapes or not fixes or not all(" = Dim(" in line for line in fixes.splitlines()):
        raise error
    return refine_dynamic_shapes_from_suggested_fixes(f"Suggested fixes:\n{fixes}", shapes)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """torch logs a page for each failure that we are about to explain in a line."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch.export")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _explain(error: Exception) -> CaptureError:
    """Names the line of the user's code that broke the graph, and the usual remedy."""
    text = str(error)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(TORCH_HOME)
        and Path(frame.filename) != Path(__file__)
        and not frame.filename.startswith("<")
    ]
    where = ""
    if frames:
        last = frames[-1]
        where = f" at {last.filename}:{last.lineno} in {last.name}: {last.line}"
    lowered = f"{type(error).__name__} {text}".lower()
    remedy = next((mend for key, mend in REMEDIES.items() if key in lowered), "")
    summary = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    return CaptureError(
        f"torch.export cannot capture the model{where} ({type(error).__name__}: {summary})",
        hint=remedy or "try torch.export.export(module, example_inputs) alone; its message names the construct",
    )
