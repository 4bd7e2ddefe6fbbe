"""AOTInductor: a .pt2 of machine code for x86 or CUDA servers, compiled here by torch and the C++ compiler.

The machine code is for this machine's instruction set. Two exports of one model run alike but are not the same bytes:
the compiler embeds the names of its temporary files.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgekit.devices.device import Device, Unit
from edgekit.errors import DeviceError, ExportError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.quiet import converters_silenced
from edgekit.model import Model
from edgekit.quantization import Scheme


@dataclass(frozen=True)
class InductorExporter(Exporter):
    """`freezing` folds the weights into the code: faster, and the file holds them once, in the kernels' layout."""

    freezing: bool = True

    format: ClassVar[str] = "inductor"
    suffix: ClassVar[str] = ".pt2"
    extra: ClassVar[str] = "export"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")

    def scheme(self, device: Device) -> Scheme:
        from edgekit.quantizers.schemes import ONNX_X86

        return ONNX_X86

    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        self.check()
        precision = model.quantization.method if model.quantization else "fp32"
        if precision not in self.precisions:
            raise ExportError(
                f"inductor carries {' and '.join(self.precisions)}, got {precision}",
                hint="use --format onnx for integers on x86",
            )
        target = "cuda" if _is_cuda(device.unit_for(self.format)) else "cpu"
        _check_tools(target)
        path = directory / f"{model.name}-{precision}{self.suffix}"
        with converters_silenced():
            self._compile(model, target, path)
        return Artifact(self.format, precision, path, notes=(f"compiled for {target}, for the machine it was made on",))

    def _compile(self, model: Model, target: str, path: Path) -> None:
        import torch
        from torch._inductor import aoti_compile_and_package

        from edgekit.passes.capture import export_program

        program: Any = export_program(model)
        if target == "cuda":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, "cuda")
        try:
            with torch.no_grad():
                aoti_compile_and_package(
                    program, package_path=str(path), inductor_configs={"freezing": self.freezing and target == "cpu"}
                )
        except Exception as error:  # inductor raises its own, the compiler's and torch's errors
            path.unlink(missing_ok=True)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ExportError(
                f"inductor cannot compile the model: {type(error).__name__}: {lines[0][:300] if lines else ''}",
                hint="check that the C++ compiler works and that the disk is not full, or use --format onnx",
            ) from error


def _is_cuda(unit: Unit) -> bool:
    return any(part.startswith(("cuda", "sm_", "sm8", "sm9")) for part in (unit.name, *unit.isa))


def _check_tools(target: str) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ExportError(
            f"the inductor exporter needs a C++ compiler, {compiler} is not installed",
            hint="apt-get install g++, or set CXX to another compiler",
        )
    if target == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise DeviceError(
                "compiling for CUDA needs the GPU that the code is for, and torch sees none",
                hint="run the export on the server itself with a CUDA build of torch, or use --format onnx",
            )
