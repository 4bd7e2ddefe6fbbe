"""LiteRT (.tflite): XNNPACK on the processor. The file is memory-mapped; weights are not copied into the process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import MissingExtraError, SessionError
from edgekit.runtimes.quiet import stderr_silenced
from edgekit.runtimes.session import Feeds, Session
from edgekit.tensors import DTYPES

INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


def load_interpreter_class() -> Any:
    """The Interpreter of ai-edge-litert, else of the older tflite-runtime. Raises MissingExtraError."""
    for module in INTERPRETERS:
        try:
            return import_module(module).Interpreter
        except ModuleNotFoundError as error:
            if error.name not in (module, module.partition(".")[0]):
                raise
    raise MissingExtraError("ai-edge-litert", "litert", "running .tflite files")


class LitertSession(Session):
    """A dimension that the file leaves open is resized on demand; 64-bit integers that it narrowed are widened back."""

    format: ClassVar[str] = "litert"

    def _load(self) -> None:
        interpreter_class = load_interpreter_class()
        try:
            with stderr_silenced():  # it says there that it uses XNNPACK
                self._interpreter = interpreter_class(
                    model_path=str(self.path), num_threads=self.options.threads or os.cpu_count() or 1
                )
                self._interpreter.allocate_tensors()
            inputs, outputs = self._slots()
        except (ValueError, RuntimeError, OSError) as error:
            raise SessionError(
                f"LiteRT refuses {self.path.name}: {error}", hint="the file is damaged or newer than the runtime"
            ) from error
        unfit = len(outputs) != len(self.outputs) or any(place >= len(self.inputs) for place, _ in inputs)
        if unfit:
            raise SessionError(
                f"{self.path.name} has {len(inputs)} inputs and {len(outputs)} outputs, "
                f"the manifest names {len(self.inputs)} and {len(self.outputs)}"
            )
        self._input_slots = tuple(
            (place, detail["index"], np.dtype(detail["dtype"]) if self._narrowed(place, detail) else None)
            for place, detail in inputs
        )
        self._output_slots = tuple(
            (detail["index"], None if detail["dtype"] == DTYPES[spec.dtype] else DTYPES[spec.dtype])
            for spec, detail in zip(self.outputs, outputs, strict=True)
        )
        self._shapes = {detail["index"]: tuple(detail["shape"]) for _, detail in inputs}
        self._is_static = all(self.inputs[place].is_static for place, _ in inputs)

    def _slots(self) -> tuple[list[tuple[int, dict[str, Any]]], list[dict[str, Any]]]:
        """(place among the specs, tensor) of each input that the file kept, and the tensor of each output.

        A signature names them args_0, args_1 ... and output_0 ...; an input that the model ignores is left out of the
        file. A file without such names has its inputs and outputs in order.
        """
        listed = self._interpreter.get_signature_list()
        if len(listed) == 1:
            runner = self._interpreter.get_signature_runner(next(iter(listed)))
            inputs = _numbered(runner.get_input_details())
            outputs = _numbered(runner.get_output_details())
            if inputs is not None and outputs is not None:
                return inputs, [detail for _, detail in outputs]
        return list(enumerate(self._interpreter.get_input_details())), self._interpreter.get_output_details()

    def _narrowed(self, place: int, detail: dict[str, Any]) -> bool:
        wanted, got = DTYPES[self.inputs[place].dtype], np.dtype(detail["dtype"])
        if wanted == got:
            return False
        if wanted.kind != got.kind or wanted.itemsize < got.itemsize:
            raise SessionError(
                f"{self.path.name} takes {got} for {self.inputs[place].name!r}, the manifest says {wanted}"
            )
        return True

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        interpreter = self._interpreter
        try:
            if not self._is_static:
                self._resize(arrays)
            for place, index, narrow in self._input_slots:
                interpreter.set_tensor(index, arrays[place] if narrow is None else arrays[place].astype(narrow))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise SessionError(f"LiteRT failed on {self.path.name}: {error}") from error
        return [
            interpreter.get_tensor(index) if widen is None else interpreter.get_tensor(index).astype(widen)
            for index, widen in self._output_slots
        ]

    def _resize(self, arrays: Sequence[np.ndarray]) -> None:
        moved = False
        for place, index, _ in self._input_slots:
            shape = arrays[place].shape
            if shape != self._shapes[index]:
                self._interpreter.resize_tensor_input(index, shape)
                self._shapes[index] = shape
                moved = True
        if moved:
            self._interpreter.allocate_tensors()

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        interpreter = self._interpreter
        ordered = [feeds[spec.name] for spec in self.inputs]
        self._run(ordered)
        fed = [
            (index, ordered[place] if narrow is None else ordered[place].astype(narrow))
            for place, index, narrow in self._input_slots
        ]
        read = [index for index, _ in self._output_slots]

        def call() -> object:
            for index, array in fed:
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in read]

        return call

    def _close(self) -> None:
        del self._interpreter


def _numbered(details: dict[str, dict[str, Any]]) -> list[tuple[int, dict[str, Any]]] | None:
    """Tensors sorted by the number that ends their names; None where the names are not numbered."""
    rows = []
    for name, detail in details.items():
        found = re.search(r"_(\d+)$", name)
        if found is None:
            return None
        rows.append((int(found.group(1)), detail))
    return sorted(rows, key=lambda row: row[0])
