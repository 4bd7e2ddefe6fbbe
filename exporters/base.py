"""What every exporter obeys: a captured Model becomes one artifact in one file format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from edgekit.devices.device import Device
from edgekit.errors import MissingExtraError
from edgekit.model import Model
from edgekit.quantization import Scheme
from edgekit.runtimes.session import Session as Session
from edgekit.runtimes.session import SessionOptions, open_session
from edgekit.tensors import TensorSpec


@dataclass(frozen=True)
class Artifact:
    """`path` is what the runtime loads; `companions` lie beside it (a build script, provider settings).

    `notes` are facts worth a line in the report: operators left in float, layers that the format could not fuse.
    `fixed`: every dimension has the example input's size, also one that the Model leaves open.
    """

    format: str
    precision: str
    path: Path
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default=())
    fixed: bool = False

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def open(self, model: Model, options: SessionOptions = SessionOptions()) -> Session:
        """A session of this artifact in its real runtime, with the Model's own input and output names."""
        return open_session(self.format, self.path, *self.interface(model), options)

    def interface(self, model: Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What the file takes and gives: the Model's inputs and outputs, at the example's sizes where `fixed`."""
        if self.fixed and model.dynamic:
            model = replace(model, dynamic={}, calibration=(), held_out=(), labels=())
        return model.input_specs, model.output_specs


class Exporter(ABC):
    """`precisions`: the quantizer names (registry QUANTIZERS, and "fp32") whose record this format can carry."""

    format: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    precisions: ClassVar[tuple[str, ...]]
    needs_torch_module: ClassVar[bool] = True

    @classmethod
    def check(cls) -> None:
        """Raises MissingExtraError, with the pip command, where a package of this format is not installed."""
        for package in cls.packages:
            if find_spec(package) is None:
                raise MissingExtraError(package, cls.extra, f"the {cls.format} exporter")

    @abstractmethod
    def scheme(self, device: Device) -> Scheme:
        """How this format wants its integers on `device`."""

    @abstractmethod
    def export(self, model: Model, directory: Path, device: Device) -> Artifact:
        """Writes `directory/<model.name>-<precision><suffix>`.

        `model` is captured; `model.quantization` says what is quantized and how (None: float).
        Raises UnsupportedOperatorError or ExportError, never the converter's own exception.
        """
