"""TensorRT for Jetson: an ONNX file within TensorRT's rules, and the recipe that builds the engine on the Jetson.

What runs here: the static rules of `tensorrt_rules`, and the file itself in ONNX Runtime on the CPU, which the parity
gate compares. What does not: TensorRT, whose engine exists only for the GPU that it was built on; the recipes are
checked as far as Python compiles them and their flags stand in NVIDIA's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.devices.device import Device
from edgekit.errors import ExportError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.onnx_exporter import lower, precision_of
from edgekit.model import Model
from edgekit.quantization import Scheme
from edgekit.quantizers.schemes import scheme_named

if TYPE_CHECKING:
    from edgekit.exporters.tensorrt_rules import Profile

# What torch.onnx translates to natively; older is reached by rewriting (`onnx_opset`).
OPSET = 18


@dataclass(frozen=True)
class TensorrtExporter(Exporter):
    """`largest`: the most that a dynamic dimension may take, by its name; four times the example's where not given."""

    largest: tuple[tuple[str, int], ...] = ()

    format: ClassVar[str] = "tensorrt"
    suffix: ClassVar[str] = ".tensorrt.onnx"
    extra: ClassVar[str] = "export"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "fp16")
    needs_torch_module: ClassVar[bool] = False

    def scheme(self, device: Device) -> Scheme:
        return scheme_named("tensorrt")

    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        """Also raises ExportError naming the nodes that break a rule of TensorRT's."""
        self.check()
        precision = precision_of(model, self)
        from edgekit.exporters.onnx_graph import finish, from_proto, to_proto, write
        from edgekit.exporters.onnx_opset import lower_opset
        from edgekit.exporters.tensorrt_recipe import write_recipe
        from edgekit.exporters.tensorrt_rules import NEWER, PARSERS, check

        _require_symmetry(model)
        features = {feature for unit in device.units for feature in unit.isa}
        parser = next((PARSERS[name] for name in sorted(features) if name in PARSERS), NEWER)
        if model.onnx_path is not None:
            from edgekit.exporters.onnx_source import quantize_source

            proto, notes = quantize_source(model, self.format)
            converted = from_proto(proto)
        else:
            converted, notes = lower(model, OPSET, self.format)
        lower_opset(converted, parser.opset, self.format)
        content = finish(to_proto(converted), self.format)
        profiles = self._profiles(model)
        import onnx

        slow = check(onnx.load_from_string(content), parser, profiles, half=precision == "fp16")
        path = directory / f"{model.name}-{precision}{self.suffix}"
        write(content, path)
        companions = write_recipe(path, model.name, precision, parser, profiles)
        return Artifact(self.format, precision, path, companions, (*notes, *slow))

    def _profiles(self, model: Model) -> dict[str, Profile]:
        """From 1 to `largest`, tuned for the example's shape; inputs with a fixed shape have none."""
        from edgekit.exporters.tensorrt_rules import Profile

        limits = dict(self.largest)
        known = {symbol for dims in model.dynamic.values() for symbol in dims.values()}
        unknown = set(limits) - known
        if unknown:
            raise ExportError(f"no dynamic dimension is called {sorted(unknown)[0]!r}, known: {sorted(known)}")
        profiles = {}
        for name, dims in model.dynamic.items():
            best = tuple(model.example_inputs[name].shape)
            low = tuple(1 if dim in dims else size for dim, size in enumerate(best))
            high = tuple(limits.get(dims[dim], 4 * size) if dim in dims else size for dim, size in enumerate(best))
            profiles[name] = Profile(low, best, high)
        return profiles


def _require_symmetry(model: Model) -> None:
    record = model.quantization
    if record is None or record.method != "int8" or record.scheme.symmetric_activations:
        return
    raise ExportError(
        f"TensorRT wants symmetric integers, the model is quantized in the scheme {record.scheme.name}",
        hint="quantize with TensorrtExporter.scheme(device)",
    )
