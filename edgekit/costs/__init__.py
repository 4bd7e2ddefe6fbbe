"""What a Model costs: its segments (floating-point work and bytes moved, fused as runtimes fuse) and its memory."""

from __future__ import annotations

from edgekit.costs.from_onnx import onnx_program
from edgekit.costs.from_torch import torch_program
from edgekit.costs.operators import Program, peak_bytes, to_segments
from edgekit.devices.segment import Segment
from edgekit.model import Model
from edgekit.quantization import Quantization

__all__ = ["peak_activation_bytes", "segments"]


def segments(model: Model, precision: str) -> tuple[Segment, ...]:
    """`precision`: a quantizer's name or "fp32". Costs are those of the example inputs' shapes.

    Where the Model carries a Quantization of that method, its record says which layers run in integers; without one
    every layer that the method can quantize is taken to be. Raises SourceError for a Model that is not captured.
    """
    return to_segments(_program(model), precision, _record(model, precision))


def peak_activation_bytes(model: Model) -> int:
    """The most bytes of inputs, outputs and intermediate tensors alive at once, run in the order of the graph."""
    record = model.quantization
    return peak_bytes(_program(model), frozenset(record.activations) if record is not None else frozenset())


def _program(model: Model) -> Program:
    return torch_program(model) if model.onnx_path is None else onnx_program(model)


def _record(model: Model, precision: str) -> Quantization | None:
    record = model.quantization
    return record if record is not None and record.method == precision else None
