"""A trained .onnx file as the source: it stays a graph, and is run, quantized and packed as one.

There is no torch module behind it, so only ONNX Runtime and TensorRT can take it. onnxruntime.quantization rewrites
the graph, with the integers that the target's scheme asks for.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.errors import DataError, ExportError, SourceError
from edgekit.model import Model, Sample, Source
from edgekit.quantization import Quantization, Scheme
from edgekit.runtimes.onnx_session import ORT_DTYPES
from edgekit.tensors import DTYPES

INTEGER_LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
# What stays in integers between them. Everything else (the powers and roots of a spectrogram, say) needs its range.
INTEGER_LINKS = ["Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Flatten", "Reshape"]
OLDEST_OPSET = 13


class OnnxModule(nn.Module):
    """Runs the file in ONNX Runtime on the CPU: torch tensors in, in the file's order, a tuple of torch tensors out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._session: Any = None

    @property
    def session(self) -> Any:
        """Opened when it is first needed. Raises SourceError where ONNX Runtime refuses the file."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            try:
                self._session = onnxruntime.InferenceSession(
                    str(self.path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # ONNX Runtime's exceptions have no base of their own
                raise SourceError(
                    f"{self.path.name} is not an ONNX model that ONNX Runtime can load: {_first_line(error)}",
                    hint="check the file with onnx.checker, or export it again",
                ) from error
        return self._session

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        names = [entry.name for entry in self.session.get_inputs()]
        feeds = {name: value.detach().contiguous().numpy() for name, value in zip(names, args, strict=True)}
        return tuple(torch.from_numpy(np.array(value)) for value in self.session.run(None, feeds))

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        return OnnxModule(self.path)


def load_onnx_model(path: Path, example_inputs: Mapping[str, Tensor] | None = None) -> Model:
    """A Model around the file: names, dynamic dimensions, digest; its `forward` gives the reference outputs.

    Without `example_inputs`, floats are drawn from N(0, 1) with a fixed seed, integers are 0 and every dynamic
    dimension is 1. Raises SourceError for a file that cannot be loaded or does not run on the example inputs.
    """
    if not path.is_file():
        raise SourceError(f"no file at {path}", hint="give the path of a .onnx file")
    module = OnnxModule(path)
    entries = module.session.get_inputs()
    dynamic = {entry.name: dims for entry in entries if (dims := _dynamic_dimensions(entry))}
    if example_inputs is None:
        generator = np.random.default_rng(0)
        examples: Sample = {entry.name: _draw(entry, generator) for entry in entries}
    else:
        names = [entry.name for entry in entries]
        if set(names) != set(example_inputs):
            raise SourceError(f"example inputs {sorted(example_inputs)}, allowed {sorted(names)}")
        examples = {name: example_inputs[name] for name in names}
    model = Model(
        name=path.stem,
        module=module,
        example_inputs=examples,
        output_names=tuple(entry.name for entry in module.session.get_outputs()),
        dynamic=dynamic,
        source=Source("onnx", path.name, hashlib.sha256(path.read_bytes()).hexdigest()),
        onnx_path=path,
    )
    try:
        module(*examples.values())
    except Exception as error:  # as above: no common base
        raise SourceError(
            f"{path.name} does not run on its example inputs: {_first_line(error)}",
            hint="its dynamic dimensions cannot be guessed; pass example_inputs",
        ) from error
    return model


def _dynamic_dimensions(entry: Any) -> dict[int, str]:
    """An unnamed dimension gets a name of its own."""
    return {
        dim: str(size) if size else f"{entry.name}_{dim}"
        for dim, size in enumerate(entry.shape)
        if not isinstance(size, int)
    }


def _draw(entry: Any, generator: np.random.Generator) -> Tensor:
    if entry.type not in ORT_DTYPES:
        raise SourceError(f"input {entry.name!r} is {entry.type}, allowed {', '.join(DTYPES)}")
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    dtype = DTYPES[ORT_DTYPES[entry.type]]
    values = generator.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
    return torch.from_numpy(np.array(values, dtype=dtype))


def quantize_onnx(model: Model, method: str, scheme: Scheme) -> Model:
    """`model` (of a .onnx file) with the wish recorded; the exporter rewrites the graph when it writes the artifact.

    Raises ExportError for a method that needs a torch module, DataError for static int8 without calibration data.
    """
    if method not in _METHODS:
        raise needs_torch_module(method)
    if method == "int8" and not model.calibration:
        raise DataError("int8 needs calibration data, got none", hint="--calibration DIR, or --quantize int8-dynamic")
    return replace(model, quantization=Quantization(method, scheme))


def needs_torch_module(what: str) -> ExportError:
    """The error of a format or method that cannot start from a .onnx file."""
    return ExportError(
        f"{what} needs the torch module, got a trained .onnx file",
        hint=f"give the PyTorch model, or take the format onnx or tensorrt with one of: fp32, {', '.join(_METHODS)}",
    )


def quantize_source(model: Model, format: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The file's graph at the recorded precision, and notes. Raises ExportError where nothing could be quantized."""
    assert model.onnx_path is not None
    proto = onnx.load(str(model.onnx_path))
    record = model.quantization
    if record is None:
        return proto, ()
    if record.method not in _METHODS:
        raise needs_torch_module(record.method)
    try:
        with quiet_tools(), tempfile.TemporaryDirectory() as folder:
            rewritten, marker = _METHODS[record.method](model, proto, record, Path(folder), format)
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise ExportError(
            f"onnxruntime.quantization failed on {model.onnx_path.name}: {_first_line(error)}",
            hint="export it with --quantize none, or give the PyTorch model",
        ) from error
    count = sum(node.op_type in marker for node in rewritten.graph.node)
    if not count:
        raise ExportError(
            f"{model.onnx_path.name} has no layer that {record.method} can change at the top of its graph",
            hint="layers inside If and Loop stay float; export it in fp32, or give the PyTorch model",
        )
    converted = ir.from_proto(rewritten)
    converted.graph.sort()  # the tools append nodes where they like; the standard wants them in order
    rewritten = ir.to_proto(converted)
    return rewritten, (f"{count} {'/'.join(marker)} nodes written by onnxruntime.quantization",)


Rewritten = tuple[onnx.ModelProto, tuple[str, ...]]


def _static(model: Model, proto: onnx.ModelProto, record: Quantization, folder: Path, format: str) -> Rewritten:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter(model.calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {name: value.numpy() for name, value in sample.items()}

    scheme, tensorrt = record.scheme, format == "tensorrt"
    prepared = prepare_graph(proto, folder)
    quantize_static(
        prepared,
        folder / "static.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=INTEGER_LAYERS if tensorrt else INTEGER_LAYERS + INTEGER_LINKS,
        per_channel=scheme.per_channel_weights,
        reduce_range=scheme.reduce_range,
        activation_type=QuantType.QUInt8 if scheme.activation_dtype == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*(fallback.layer for fallback in record.fallbacks), *_loose_links(prepared)],
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": scheme.symmetric_activations,
            "QuantizeBias": not tensorrt,
        },
    )
    return onnx.load(str(folder / "static.onnx")), ("QuantizeLinear",)


def _loose_links(path: Path) -> list[str]:
    """Links that no integer layer feeds: quantizing them would round float for nothing."""
    graph = onnx.load(str(path)).graph
    integer: set[str] = set()
    loose = []
    for node in graph.node:
        if node.op_type in INTEGER_LAYERS or (node.op_type in INTEGER_LINKS and integer & set(node.input)):
            integer.update(node.output)
        elif node.op_type in INTEGER_LINKS:
            loose.append(node.name)
    return loose


def _dynamic(model: Model, proto: onnx.ModelProto, record: Quantization, folder: Path, format: str) -> Rewritten:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if format == "tensorrt":
        raise ExportError("tensorrt cannot carry int8-dynamic", hint="take int8 or fp16")
    quantize_dynamic(
        prepare_graph(proto, folder),
        folder / "dynamic.onnx",
        op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
        per_channel=record.scheme.per_channel_weights,
        reduce_range=record.scheme.reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[fallback.layer for fallback in record.fallbacks],
        extra_options={"EnableSubgraph": True},
    )
    return onnx.load(str(folder / "dynamic.onnx")), ("MatMulInteger", "DynamicQuantizeLSTM")


def _half(model: Model, proto: onnx.ModelProto, record: Quantization, folder: Path, format: str) -> Rewritten:
    """Inputs and outputs keep float32: casts at the borders, which count the change."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    blocked = [fallback.layer for fallback in record.fallbacks]
    return convert_float_to_float16(proto, keep_io_types=True, node_block_list=blocked or None), ("Cast",)


_METHODS: dict[str, Callable[[Model, onnx.ModelProto, Quantization, Path, str], Rewritten]] = {
    "int8": _static,
    "int8-dynamic": _dynamic,
    "fp16": _half,
}


def prepare_graph(proto: onnx.ModelProto, folder: Path) -> Path:
    """Constants folded, batch norms fused, shapes inferred; per-channel scales need opset 13."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if opset < OLDEST_OPSET:
        proto = onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    onnx.save(proto, str(folder / "source.onnx"))
    quant_pre_process(str(folder / "source.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    return folder / "prepared.onnx"


@contextmanager
def quiet_tools() -> Iterator[None]:
    """The tools write advice to the root logger, which is the user's."""
    import logging

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
