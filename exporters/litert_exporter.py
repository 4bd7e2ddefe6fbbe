"""LiteRT: a .tflite through litert-torch, integer kernels with the scales of our own record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from edgekit.devices.device import Device
from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.quiet import Noise, converters_silenced
from edgekit.model import Model, Sample
from edgekit.quantization import Scheme
from edgekit.report.metrics import sqnr_db

# How the converter reads quantize and dequantize nodes: as integer kernels with fixed scales (STATIC), or as integer
# weights (DYNAMIC): of kernels that scale their input at run time, and, in its strict mode, of float kernels.
MODES = {"int8": "STATIC", "int8-dynamic": "DYNAMIC", "int8-weight-only": "DYNAMIC STRICT"}

# Integer kernels round differently from torch by far less than this; rows mixed up by a wrong shape agree by far less.
RESIZED_SQNR_DB = 15.0


@dataclass(frozen=True)
class LitertExporter(Exporter):
    """Behind the pass TakeChannelsLast the file takes images as [N, H, W, C] without a transpose."""

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
        if precision not in self.precisions:
            raise ExportError(
                f"litert carries {', '.join(self.precisions)}, got {precision}", hint="pick another --quantize"
            )
        with converters_silenced() as noise:
            converted, notes = self._convert(model, precision, noise)
        path = directory / f"{model.name}-{precision}{self.suffix}"
        path.write_bytes(converted.content)
        return Artifact(self.format, precision, path, notes=notes, fixed=bool(converted.why_fixed))

    def _convert(self, model: Model, precision: str, noise: Noise) -> tuple[Converted, tuple[str, ...]]:
        from edgekit.exporters import litert_flatbuffer as flatbuffer

        module = self._graph(model, precision)
        converted = convert(Conversion(module, model.example_inputs, model.dynamic, MODES.get(precision)), noise)
        content, notes = converted.content, (converted.why_fixed,) if converted.why_fixed else ()
        if precision == "fp16":
            content, stored = flatbuffer.store_half(content)
            notes = (f"{stored} weights are stored in half precision and computed with in single", *notes)
        else:
            content = flatbuffer.restore_float_interface(content)
            if precision == "int8-dynamic":
                from edgekit.exporters.litert_graph import embedding_tables

                content, tables = flatbuffer.restore_tables(content, embedding_tables(model.graph))
                notes = (
                    *((f"embedding tables in 8 bits, a scale a row: {tables}",) if tables else ()),
                    *notes,
                )
            if precision == "int8":
                notes = (*flatbuffer.integer_notes(content), *notes)
        return Converted(content, converted.why_fixed), notes

    def _graph(self, model: Model, precision: str) -> Any:
        """What is converted: PT2E form for integer kernels, else a graph in single precision."""
        from edgekit.exporters.litert_graph import (
            add_up_constant_rows,
            in_single_precision,
            quantize_paddings,
            unfold_weights,
        )
        from edgekit.quantizers.lower import to_pt2e

        if precision == "fp16":
            return in_single_precision(model.copy_graph())
        if precision not in MODES:
            return model.graph
        record = model.quantization
        assert record is not None
        if precision == "int8-dynamic":  # the kernels choose the activations' scales themselves
            record = replace(record, method="int8-weight-only")
        graph = quantize_paddings(unfold_weights(to_pt2e(replace(model, quantization=record))))
        return add_up_constant_rows(graph) if precision == "int8-dynamic" else graph


@dataclass(frozen=True)
class Conversion:
    """`inputs`: an example, in the order of forward. `mode`: one of MODES' values, None for a float graph."""

    module: Any
    inputs: Sample
    dynamic: dict[str, dict[int, str]]
    mode: str | None


@dataclass(frozen=True)
class Converted:
    """`why_fixed` is empty where every dynamic dimension stayed open."""

    content: bytes
    why_fixed: str = ""


def convert(wanted: Conversion, noise: Noise) -> Converted:
    """The .tflite at the example's sizes, its dynamic dimensions open where the file resizes correctly.

    litert-torch's own open dimensions refuse most networks, and each refusal costs a whole conversion: a file of fixed
    size that LiteRT resizes serves as well, and is checked for it. An operator without a lowering is decomposed
    further and tried once more. Raises UnsupportedOperatorError or ExportError.
    """
    from edgekit.exporters.litert_graph import teach_layout_of_paddings

    teach_layout_of_paddings()
    content = _first_success(wanted, noise)
    if not wanted.dynamic or _resizes(content, wanted):
        return Converted(content)
    return Converted(content, _why_fixed(wanted))


def _first_success(wanted: Conversion, noise: Noise) -> bytes:
    args = tuple(wanted.inputs.values())
    attempts: list[Callable[[], bytes]] = [lambda: _convert_once(wanted.module, args, wanted.mode)]
    if wanted.mode is None:  # decomposing to core aten would take quantized layers apart
        attempts.append(lambda: _convert_once(_decompose(wanted.module, args), args, None))
    failures = []
    for attempt in attempts:
        try:
            return attempt()
        except Exception as error:  # torch, MLIR and the flatbuffer writer raise what they like
            failures.append(error)
    raise _explain(failures[0], noise.text) from failures[0]


def _why_fixed(wanted: Conversion) -> str:
    sizes = {
        symbol: wanted.inputs[name].shape[dim] for name, dims in wanted.dynamic.items() for dim, symbol in dims.items()
    }
    listed = ", ".join(f"{symbol} of {size}" for symbol, size in sizes.items())
    return f"fixed {listed}: the file holds constant shapes that LiteRT cannot resize"


def _convert_once(module: Any, args: tuple[Any, ...], mode: str | None) -> bytes:
    import litert_torch

    module.training = False
    with nullcontext() if mode == "DYNAMIC" else _only_marked_layers_quantized():
        converted = litert_torch.convert(module, args, quant_config=_config(mode))
        return bytes(converted.model_content())


@contextmanager
def _only_marked_layers_quantized() -> Iterator[None]:
    """Left alone, the converter also quantizes the weights of a float layer that integers happen to surround.

    Its strict mode keeps to the quantize nodes, and litert-torch has no argument for it.
    """
    from litert_torch._convert import litert_converter

    extension = litert_converter.converter_api_ext

    def strict() -> Any:
        config = extension.ConvertToTFLConfig()
        config.strict_qdq_mode = True
        return config

    names = {name: getattr(extension, name) for name in dir(extension) if not name.startswith("__")}
    litert_converter.converter_api_ext = SimpleNamespace(**{**names, "ConvertToTFLConfig": strict})
    try:
        yield
    finally:
        litert_converter.converter_api_ext = extension


def _resizes(content: bytes, wanted: Conversion) -> bool:
    """Whether a file of the example's size gives the module's numbers at other sizes too."""
    import torch
    from ai_edge_litert.interpreter import Interpreter

    for size in (1, 3):
        resized = _resized(wanted, size)
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(wanted.module(*resized.values()))
        try:
            runner = Interpreter(model_content=content).get_signature_runner()
            given = {name: list(resized.values())[_place(name)].numpy() for name in runner.get_input_details()}
            got = runner(**given)
        except (RuntimeError, ValueError):  # LiteRT's way of saying that a constant shape stands in the way
            return False
        for place, value in enumerate(expected):
            actual = got[f"output_{place}"]
            if actual.shape != tuple(value.shape) or sqnr_db(value.numpy(), actual) < RESIZED_SQNR_DB:
                return False
    return True


def _place(name: str) -> int:
    """args_2 -> 2."""
    return int(name.rpartition("_")[2])


def _resized(wanted: Conversion, size: int) -> Sample:
    """The example with every dynamic dimension of `size`: its first slice, repeated."""
    resized = dict(wanted.inputs)
    for name, dims in wanted.dynamic.items():
        for dim in dims:
            resized[name] = resized[name].narrow(dim, 0, 1).repeat_interleave(size, dim)
    return resized


def _decompose(module: Any, args: tuple[Any, ...]) -> Any:
    import torch

    return torch.export.export(module, args, strict=False).run_decompositions().module()


def _config(mode: str | None) -> Any:
    if mode is None:
        return None
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    # Only the mode is read off this quantizer: the graph's own quantize nodes carry the scales.
    settings = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=mode != "STATIC")
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(settings))


def _explain(error: Exception, printed: str) -> ExportError:
    """Names the operator, where torch, the lowering table or MLIR's diagnostics name one."""
    patterns = (
        (str(error), r"Lowering not found: ([\w.:]+)"),
        (printed + str(error), r"failed to legalize operation '([\w.]+)'"),
        (printed + str(error), r"error: (?:.*\): )?'([\w.]+)' op"),
        (str(error), r"((?:aten|prims|quantized_decomposed)[.:]+\w+(?:\.\w+)?)"),
    )
    detail = f"{type(error).__name__}: {_message(str(error))[:300]}"
    for text, pattern in patterns:
        found = re.search(pattern, text)
        if found:
            return UnsupportedOperatorError(
                "litert", found.group(1), detail=detail, hint="replace the operator, or use --format onnx"
            )
    return ExportError(f"litert cannot convert the model: {detail}", hint="use --format onnx")


def _message(text: str) -> str:
    """The first line; where it only announces others, MLIR's own diagnostic without the path of the operation."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].endswith(":") or len(lines) == 1:
        return lines[0] if lines else ""
    told = next((line for line in lines[1:] if line.startswith("error:")), lines[1])
    place = re.search(r'\("([^"]+)":(\d+):\d+\)', told)
    where = f" ({Path(place[1]).name}:{place[2]})" if place else ""
    return re.sub(r"^error: (?:.*\): )?", "", told) + where
