"""ExecuTorch: a .pte through XNNPACK. What XNNPACK refuses runs on slow portable kernels: the notes say which."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.devices.device import Device
from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.quiet import converters_silenced
from edgekit.model import Model
from edgekit.quantization import Scheme

SMALLEST_LIMIT = 16


@dataclass(frozen=True)
class ExecutorchExporter(Exporter):
    """`limits`: dynamic dimension -> the largest size that memory is planned for.

    Without one it is the largest size among the Model's samples, and at least 16.
    """

    limits: tuple[tuple[str, int], ...] = ()

    format: ClassVar[str] = "executorch"
    suffix: ClassVar[str] = ".pte"
    extra: ClassVar[str] = "export"
    packages: ClassVar[tuple[str, ...]] = ("executorch", "torchao")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8", "int8-dynamic", "int4-weight-only")

    def scheme(self, device: Device) -> Scheme:
        from edgekit.quantizers.schemes import XNNPACK

        return XNNPACK

    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        self.check()
        precision = model.quantization.method if model.quantization else "fp32"
        with converters_silenced():
            program = self._program(model)
            executable, notes = _lower(program, dynamic_weights=precision in ("int8-dynamic", "int4-weight-only"))
            _check_kernels(executable)
        path = directory / f"{model.name}-{precision}{self.suffix}"
        path.write_bytes(executable.buffer)
        return Artifact(self.format, precision, path, notes=(*notes, *self._limit_notes(model)))

    def _program(self, model: Model) -> Any:
        """The ExportedProgram that is lowered: PT2E form where integers are asked for, dimensions bounded."""
        import torch

        from edgekit.exporters.executorch_graph import keep_mean_dimensions, look_up_integers, open_attention
        from edgekit.passes.capture import widen
        from edgekit.quantizers.lower import to_pt2e

        record = model.quantization
        graph = model.graph
        if record is not None and record.weights:
            # 4-bit weights have kernels for activations quantized at run time only (8da4w)
            dynamic = record.method == "int4-weight-only"
            graph = to_pt2e(replace(model, quantization=replace(record, method="int8-dynamic")) if dynamic else model)
            graph = look_up_integers(graph, record)
        graph = open_attention(keep_mean_dimensions(graph if graph is not model.graph else model.copy_graph()))
        limits = self._limits(model)
        symbols = {name: torch.export.Dim(name, min=1, max=limit) for name, limit in limits.items()}
        shapes = tuple(
            {dim: symbols[symbol] for dim, symbol in model.dynamic.get(name, {}).items()}
            for name in model.example_inputs
        )
        try:
            return torch.export.export(
                graph, tuple(widen(model).values()), dynamic_shapes=shapes if limits else None, strict=False
            )
        except Exception as error:  # torch.export raises anything
            raise ExportError(f"executorch: torch.export refused the graph: {_headline(error)}") from error

    def _limits(self, model: Model) -> dict[str, int]:
        given = dict(self.limits)
        limits: dict[str, int] = {}
        for sample in (model.example_inputs, *model.calibration, *model.held_out):
            for name, dims in model.dynamic.items():
                for dim, symbol in dims.items():
                    size = max(sample[name].shape[dim], limits.get(symbol, SMALLEST_LIMIT))
                    limits[symbol] = given.get(symbol, size)
        return limits

    def _limit_notes(self, model: Model) -> tuple[str, ...]:
        return tuple(f"memory is planned for {name} up to {limit}" for name, limit in self._limits(model).items())


def _lower(program: Any, *, dynamic_weights: bool) -> tuple[Any, tuple[str, ...]]:
    """The executable, and what became of the operators. Raises UnsupportedOperatorError or ExportError."""
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    partitioners = [XnnpackPartitioner()]
    if dynamic_weights:
        # each product quantizes its own input: partitions that share one would need the integers of both
        dynamic = XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True)
        partitioners.insert(0, dynamic)
    try:
        manager = to_edge_transform_and_lower(
            program, partitioner=partitioners, compile_config=EdgeCompileConfig(_check_ir_validity=False)
        )
        notes = delegation_notes(manager.exported_program().graph_module)  # before memory planning adds its own nodes
        return manager.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True)), notes
    except Exception as error:  # the passes raise whatever they run into
        raise _explain(error) from error


def _explain(error: Exception) -> ExportError:
    missing = re.search(r"[Mm]issing (?:out variants|operators?)[^'\"]*['\"]([\w:.]+)", str(error))
    if missing:
        return UnsupportedOperatorError(
            "executorch", missing.group(1), hint="replace the operator, or use --format onnx"
        )
    node = re.search(r"(?:torch\.ops\.)?((?:aten|quantized_decomposed|torchao)[.:]+[\w.]+)", str(error))
    if node:
        return UnsupportedOperatorError("executorch", node.group(1), detail=_headline(error))
    return ExportError(f"executorch cannot lower the model: {_headline(error)}")


def _check_kernels(executable: Any) -> None:
    """Raises UnsupportedOperatorError for an operator that the portable runtime has no kernel for."""
    from executorch.extension.pybindings.portable_lib import _get_operator_names

    known = set(_get_operator_names())
    for plan in executable.executorch_program.execution_plan:
        for operator in plan.operators:
            name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
            if name not in known:
                raise UnsupportedOperatorError(
                    "executorch", name, detail="the portable runtime has no kernel", hint="use --format onnx"
                )


def delegation_notes(graph: Any) -> tuple[str, ...]:
    """How many operators of the partitioned edge graph XNNPACK runs, and which are left to portable kernels."""
    inside = 0
    portable: Counter[str] = Counter()
    for node in graph.graph.nodes:
        lowered = getattr(graph, str(node.target), None) if node.op == "get_attr" else None
        if lowered is not None and hasattr(lowered, "original_module"):
            inside += sum(_computes(inner) for inner in lowered.original_module.graph.nodes)
        elif _computes(node):
            portable[_operator_name(node)] += 1
    notes = [f"XNNPACK runs {inside} of {inside + portable.total()} operators"]
    if portable:
        listed = ", ".join(f"{name} x{count}" for name, count in portable.most_common())
        notes.append(f"not delegated, on slow portable kernels: {listed}")
    return tuple(notes)


def _computes(node: Any) -> bool:
    """Edge operators only: neither delegate calls nor arithmetic on sizes."""
    from torch._ops import OpOverload

    return node.op == "call_function" and isinstance(getattr(node.target, "_op", None), OpOverload)


def _operator_name(node: Any) -> str:
    return str(node.target._op).replace("::", ".")


def _headline(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
