"""LiteRT: a .tflite through litert-torch, integer kernels with the scales of our own record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from edgekit.devices.device import Device
from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.quiet import converters_silenced
from edgekit.model import Model
from edgekit.quantization import Scheme


@dataclass(frozen=True)
class LitertExporter(Exporter):
    format: ClassVar[str] = "litert"
    suffix: ClassVar[str] = ".tflite"
    extra: ClassVar[str] = "export"
    packages: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_litert")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weight-only")

    def scheme(self, device: Device) -> Scheme:
        from edgekit.quantizers.schemes import LITERT

        return LITERT

    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        self.check()
        precision = model.quantization.method if model.quantization else "fp32"
        import litert_torch
        with converters_silenced() as noise:
            content = litert_torch.convert(model.graph, model.args).model_content()
        path = directory / f"{model.name}-{precision}{self.suffix}"
        path.write_bytes(content)
        return Artifact(self.format, precision, path)
