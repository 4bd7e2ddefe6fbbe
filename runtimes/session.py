"""What every runtime obeys: a Session runs one artifact; it never imports torch unless its runtime is torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgekit.errors import InputError, SessionError
from edgekit.registry import SESSIONS
from edgekit.tensors import DTYPES, TensorSpec

if TYPE_CHECKING:
    from edgekit.runtimes.codecs.base import Codec

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SessionOptions:
    """`threads` None takes every core; `provider` (onnx, tensorrt) is cpu, cuda or tensorrt, None the best here."""

    threads: int | None = None
    warmup: int = 1
    provider: str | None = None
    cache_dir: Path | None = None


class Session(ABC):
    """One artifact, loaded. Safe to use from one thread at a time; `close` is idempotent.

    `inputs` and `outputs` are the model's own names and dtypes in the model's order, whatever the file calls them.
    """

    format: ClassVar[str]

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: SessionOptions = SessionOptions(),
    ) -> None:
        self.path, self.options = path, options
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._input_names = frozenset(spec.name for spec in self.inputs)
        self._output_names = tuple(spec.name for spec in self.outputs)
        self._input_checks = tuple(
            (spec, DTYPES[spec.dtype], spec.shape if spec.is_static else None) for spec in self.inputs
        )
        self._closed = False
        self._on_close: list[Callable[[], None]] = []
        self._check_path()
        self._load()

    def _check_path(self) -> None:
        """Sessions that run no file of their own override it."""
        if not self.path.exists():
            raise SessionError(f"no artifact at {self.path}", hint="check the path, or export again")

    @abstractmethod
    def _load(self) -> None:
        """Opens `self.path`. Raises SessionError where the runtime refuses it."""

    @abstractmethod
    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Inputs and outputs in the order of the specs. Outputs are the caller's to keep."""

    @abstractmethod
    def bare(self, feeds: Feeds) -> Callable[[], object]:
        """A call of the runtime itself on `feeds`, nothing of ours around it: what overhead is measured against."""

    def _close(self) -> None:  # noqa: B027 - most runtimes free themselves with their object
        """Frees what the runtime holds."""

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Raises InputError for names, dtypes or shapes that do not fit, SessionError where the runtime fails."""
        if self._closed:
            raise SessionError("this session is closed", hint="load the bundle again")
        if not isinstance(feeds, Mapping):
            raise InputError(f"feeds are a {type(feeds).__name__}, allowed a mapping", hint="input name -> numpy array")
        if feeds.keys() != self._input_names:
            raise InputError(
                f"input names {sorted(feeds)}, allowed {sorted(self._input_names)}",
                hint="pass exactly the inputs that `edgekit inspect` lists",
            )
        arrays = []
        for spec, dtype, shape in self._input_checks:
            array = feeds[spec.name]
            if not isinstance(array, np.ndarray):
                raise InputError(f"input {spec.name!r} is a {type(array).__name__}, allowed a numpy array")
            if array.dtype != dtype or array.shape != shape:
                reason = spec.mismatch(array)
                if reason is not None:
                    retype = array.dtype != dtype
                    fix = f"convert it: .astype({spec.dtype!r})" if retype else "`edgekit inspect` shows the shapes"
                    raise InputError(f"input {spec.name!r} has {reason}", hint=fix)
            arrays.append(array)
        return dict(zip(self._output_names, self._run(arrays), strict=True))

    def reads(self, digest: str, codec: Codec) -> bool:
        """Whether `run` also takes CodedRows (`codecs.rows`) of this codec, which it then remembers by `digest`."""
        return False

    @property
    def runs(self) -> str:
        """What really runs, where that is not the artifact in its own runtime; else ""."""
        return ""

    def warm_up(self) -> None:
        """Runs zeros `options.warmup` times, every dynamic dimension at 1."""
        feeds = {
            spec.name: np.zeros([s if isinstance(s, int) else 1 for s in spec.shape], DTYPES[spec.dtype])
            for spec in self.inputs
        }
        for _ in range(self.options.warmup):
            self.run(feeds)

    def on_close(self, release: Callable[[], None]) -> None:
        """`release` is called once this session has let go of its artifact."""
        self._on_close.append(release)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._close()
            finally:
                while self._on_close:
                    self._on_close.pop()()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    format: str,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    options: SessionOptions = SessionOptions(),
) -> Session:
    """Raises UnknownNameError, MissingExtraError or SessionError."""
    session: Session = SESSIONS.load(format)(path, inputs, outputs, options)
    return session
