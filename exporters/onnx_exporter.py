"""ONNX for ONNX Runtime: standard operators, QDQ for static int8, one self-contained file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.devices.device import Device
from edgekit.errors import ExportError, UsageError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.model import Model
from edgekit.quantization import Scheme
from edgekit.quantizers.schemes import scheme_named

if TYPE_CHECKING:
    import onnx_ir as ir

# The newest that every ONNX Runtime we install (1.22 and later) optimises fully; it brings 4-bit integers.
OPSET = 21
NATIVE = 18  # the oldest that torch.onnx writes itself
SIGNED_OPSET = 20
OPSETS = (13, 17, *range(NATIVE, 24))


@dataclass
class OnnxExporter(Exporter):
    """`opset`: 13, 17, or 18 to 23; older ones are reached by rewriting.

    fp16 is taken as the Fp16 quantizer left the graph; a trained .onnx file is quantized as a graph, in its own opset.
    Raises UsageError for another opset.
    """

    opset: int = OPSET

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset}, allowed {', '.join(map(str, OPSETS))}", hint="leave --opset out")

    format: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str] = "export"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    precisions: ClassVar[tuple[str, ...]] = (
        "fp32",
        "int8",
        "int8-dynamic",
        "int8-weight-only",
        "int4-weight-only",
        "w6a6",
        "w4a8",
        "mxfp4",
        "fp16",
    )
    needs_torch_module: ClassVar[bool] = False

    def scheme(self, device: Device) -> Scheme:
        """x86 multiplies u8 by s8: with VNNI exactly, without it 7-bit weights keep the sum from saturating."""
        if device.arch not in ("x86_64", "amd64"):
            return scheme_named("onnx-arm")
        features = {feature for unit in device.units for feature in unit.isa}
        return scheme_named("onnx-x86" if any("vnni" in name for name in features) else "onnx-x86-no-vnni")

    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        self.check()
        precision = precision_of(model, self)
        from edgekit.exporters.onnx_graph import finish, to_proto, write
        from edgekit.exporters.onnx_opset import lower_opset
        from edgekit.exporters.onnx_qdq import drop_unread, quantize_biases
        from edgekit.exporters.onnx_residual import separate_residuals
        from edgekit.exporters.onnx_scores import free_products

        if model.onnx_path is not None:
            from edgekit.exporters.onnx_source import quantize_source

            proto, notes = quantize_source(model, self.format)
        else:
            converted, notes = lower(model, max(self._opset(model), NATIVE), self.format)
            quantize_biases(converted.graph)
            free_products(converted.graph)
            separate_residuals(converted.graph)
            drop_unread(converted.graph)
            if self.opset < NATIVE:
                lower_opset(converted, self.opset, self.format)
            proto = to_proto(converted)
        if all(node.op_type == "Identity" for node in proto.graph.node):
            raise ExportError(
                f"{model.name} computes nothing: its outputs are inputs", hint="give a module that computes something"
            )
        path = directory / f"{model.name}-{precision}{self.suffix}"
        write(finish(proto, self.format), path)
        return Artifact(self.format, precision, path, notes=notes)

    def _opset(self, model: Model) -> int:
        """From opset 21 on ONNX Runtime notes the type of each QuantizeLinear that it inserts, and on x86 then makes
        signed zero points unsigned: it refuses its own graph (1.31, microsoft/onnxruntime#28144). Only integers of 4
        bits need opset 21."""
        record = model.quantization
        if record is None or not record.activations or record.scheme.activation_dtype != "int8":
            return self.opset
        return self.opset if any(grid.bits == 4 for grid in record.weights.values()) else min(self.opset, SIGNED_OPSET)


def precision_of(model: Model, exporter: Exporter) -> str:
    """The name of the method that quantized `model`. Raises ExportError where the format cannot carry it."""
    precision = "fp32" if model.quantization is None else model.quantization.method
    if precision not in exporter.precisions:
        raise ExportError(
            f"{exporter.format} cannot carry {precision}", hint=f"it carries: {', '.join(exporter.precisions)}"
        )
    return precision


def lower(model: Model, opset: int, format: str) -> tuple[ir.Model, tuple[str, ...]]:
    """The ONNX graph of a captured Model at its precision, and notes for the report."""
    from edgekit.exporters.onnx_graph import convert, simplify
    from edgekit.exporters.onnx_narrow import INT4_OPSET, store_in_four_bits
    from edgekit.exporters.onnx_qdq import transpose_weights
    from edgekit.exporters.onnx_weights import quantize_weights
    from edgekit.quantizers.lower import to_pt2e

    record = model.quantization
    notes: tuple[str, ...] = ()
    if record is not None and record.is_static:
        converted = convert(model, to_pt2e(model), opset, format)
    else:
        converted = convert(model, model.graph, opset, format)
    held = {}
    if record is not None and record.method == "mxfp4":
        from edgekit.exporters.onnx_mxfp4 import hold_weights, store_mxfp4

        held = hold_weights(converted, model)
        notes = ("weights take 4.25 bits in the file and are decoded to float when it is loaded",)
    elif record is not None and not record.is_static and record.method != "fp16":
        kept = quantize_weights(converted, model)
        notes = (f"float weights: {', '.join(kept)}",) if kept else ()
    simplify(converted)
    if held:
        store_mxfp4(converted.graph, held)
    transpose_weights(converted.graph)
    if record is not None and record.is_static and opset >= INT4_OPSET:
        store_in_four_bits(converted.graph, {name for name, grid in record.weights.items() if grid.bits == 4})
    return converted, notes
