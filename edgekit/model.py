"""A Model: a torch module with its example inputs, calibration data, task and history. Build side only.

Passes never change a Model: they return a new one (`dataclasses.replace`, or `evolve` to record history).
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.bundle.loop import Loop
from edgekit.bundle.manifest import Postprocess, Preprocess, TextPreprocess
from edgekit.errors import DataError, NumericsError, SourceError
from edgekit.quantization import Quantization
from edgekit.tensors import TensorSpec

Sample = dict[str, Tensor]

DTYPE_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class HistoryEntry:
    """One pass that made this Model; `size_bytes` is what the parameters weigh after it."""

    name: str
    detail: str
    seconds: float
    size_bytes: int


@dataclass(frozen=True)
class Source:
    """Where the Model came from: `kind` is sample, callable, pt2, huggingface, onnx or module."""

    kind: str
    reference: str
    digest: str


@dataclass(frozen=True)
class Model:
    """`example_inputs`: by name, in the order of the module's forward. `dynamic`: input -> {dimension: its name}.

    `calibration` and `held_out` are samples shaped like the example inputs; ranges are found on the first, quality
    is judged on the second. `module` is the user's own, or once captured the torch.export graph (`graph`).
    `labels`: the class of each held-out sample, where known. `previews`: a few files that a report may show.
    `notes`: what a user should know of how it was loaded. `onnx_path` is set for a trained .onnx file, which has no
    module. `loop`: of a module that is one step of an iteration.
    """

    name: str
    module: nn.Module
    example_inputs: Sample
    output_names: tuple[str, ...] = ()
    task: str = "other"
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    calibration: tuple[Sample, ...] = ()
    held_out: tuple[Sample, ...] = ()
    labels: tuple[int, ...] = ()
    preprocess: Preprocess | TextPreprocess | None = None
    postprocess: Postprocess | None = None
    tokenizer: Path | None = None
    previews: tuple[Path, ...] = ()
    source: Source = Source("module", "", "")
    history: tuple[HistoryEntry, ...] = ()
    quantization: Quantization | None = None
    onnx_path: Path | None = None
    notes: tuple[str, ...] = ()
    loop: Loop | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise SourceError(
                f"got a {type(self.module).__name__}, allowed a torch.nn.Module",
                hint="give a module, or a callable that returns one (or module and example inputs)",
            )
        if not self.example_inputs:
            raise SourceError(
                "no example inputs", hint="return (module, example_inputs) from the callable, or pass example_inputs"
            )
        for samples in (self.calibration, self.held_out):
            for sample in samples:
                self._check_sample(sample)

    def _check_sample(self, sample: Sample) -> None:
        if list(sample) != list(self.example_inputs):
            raise DataError(f"calibration inputs {list(sample)}, allowed {list(self.example_inputs)}")
        for name, value in sample.items():
            example = self.example_inputs[name]
            loose = self.dynamic.get(name, {})
            fits = value.dim() == example.dim() and all(
                value.shape[dim] == example.shape[dim] or dim in loose for dim in range(example.dim())
            )
            if not fits or value.dtype != example.dtype:
                raise DataError(
                    f"calibration input {name!r} is {value.dtype} {list(value.shape)}, "
                    f"allowed {example.dtype} {list(example.shape)}",
                    hint="preprocess calibration data exactly like the model's inputs",
                )

    @property
    def graph(self) -> torch.fx.GraphModule:
        """The captured graph. Raises SourceError where `Capture` has not run."""
        if not isinstance(self.module, torch.fx.GraphModule):
            raise SourceError(f"{self.name} is not captured yet", hint="run the Capture pass first")
        return self.module

    def copy_graph(self) -> torch.fx.GraphModule:
        """A deep copy of the captured graph, for a pass to change and hand to `evolve`."""
        return copy.deepcopy(self.graph)

    @property
    def args(self) -> tuple[Tensor, ...]:
        return tuple(self.example_inputs.values())

    def forward(self, sample: Sample) -> dict[str, Tensor]:
        """Outputs by name, without gradients. Raises NumericsError for NaN or infinity."""
        args, kwargs = forward_arguments(self.module, sample)
        with torch.no_grad():
            values = flatten_outputs(self.module(*args, **kwargs))
        for name, value in zip(self.output_names, values, strict=True):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NumericsError(
                    f"output {name!r} holds NaN or infinity", hint="check the weights and the input's scale"
                )
        return dict(zip(self.output_names, values, strict=True))

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name,
                DTYPE_NAMES[value.dtype],
                tuple(self.dynamic.get(name, {}).get(dim, size) for dim, size in enumerate(value.shape)),
            )
            for name, value in self.example_inputs.items()
        )

    @cached_property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """Shapes as the example inputs give them; a dimension that follows a dynamic one carries its name."""
        outputs = self.forward(self.example_inputs)
        symbols = self._output_symbols(outputs)
        return tuple(
            TensorSpec(
                name,
                DTYPE_NAMES[value.dtype],
                tuple(symbols.get((name, dim), size) for dim, size in enumerate(value.shape)),
            )
            for name, value in outputs.items()
        )

    def _output_symbols(self, outputs: Sample) -> dict[tuple[str, int], str]:
        """Which output dimensions move when a dynamic input dimension grows by one: (output, dim) -> its name."""
        symbols: dict[tuple[str, int], str] = {}
        for symbol in {name for dims in self.dynamic.values() for name in dims.values()}:
            grown = {
                name: _grow(value, [dim for dim, known in self.dynamic.get(name, {}).items() if known == symbol])
                for name, value in self.example_inputs.items()
            }
            for name, value in self.forward(grown).items():
                for dim, (was, now) in enumerate(zip(outputs[name].shape, value.shape, strict=True)):
                    if was != now:
                        symbols[name, dim] = symbol
        return symbols

    @property
    def size_bytes(self) -> int:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def evolve_quietly(self, **changes: Any) -> Model:
        """This Model with `changes`; the pass that asks for it is the one that writes the history."""
        return replace(self, **changes)

    def evolve(self, name: str, detail: str, seconds: float, **changes: Any) -> Model:
        """This Model with `changes`, and one more line of history."""
        changed = replace(self, **changes)
        entry = HistoryEntry(name, detail, seconds, changed.size_bytes)
        return replace(changed, history=(*self.history, entry))


def _grow(value: Tensor, dims: list[int]) -> Tensor:
    """`value` one longer in each of `dims`, its first slice twice."""
    for dim in dims:
        value = value.repeat_interleave(torch.tensor([2] + [1] * (value.shape[dim] - 1)), dim)
    return value


def flatten_outputs(value: Any) -> list[Tensor]:
    """The tensors of a tensor, tuple, list, dict or dataclass output, in order; None left out."""
    leaves = torch.utils._pytree.tree_leaves(dict(value) if isinstance(value, dict) else value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def forward_arguments(module: nn.Module, sample: Sample) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """How to call `module` on `sample`: by keyword where its forward knows all the names, by position elsewhere."""
    if not isinstance(module, torch.fx.GraphModule):
        known = inspect.signature(module.forward).parameters
        if all(name in known and known[name].kind is not inspect.Parameter.POSITIONAL_ONLY for name in sample):
            return (), dict(sample)
    return tuple(sample.values()), {}
