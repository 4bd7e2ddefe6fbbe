"""The session of a served part: its program on a device, in a precision, within a budget of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgekit.bundle import Bundle
from edgekit.bundle.cache import cache_root
from edgekit.bundle.layout import describe_file
from edgekit.bundle.manifest import Part, PartFile
from edgekit.errors import DeviceError, InputError, SessionError, UsageError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.rows import RATES, CodedRows
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.session import Feeds, SessionOptions
from edgekit.runtimes.torch_engine import PROGRAM_SUFFIX, TorchOptions
from edgekit.runtimes.torch_engine.budget import Member, MemoryBudget, join_shared
from edgekit.runtimes.torch_session import TorchSession, as_tensors, import_torch
from edgekit.tensors import TensorSpec, shares_batch

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.runtimes.torch_engine.frames import FrameReader

logger = logging.getLogger("edgekit")


def open_part(bundle: Bundle, part: Part, options: TorchOptions) -> EngineSession:
    """What `open_torch` does."""
    file = program_of(bundle, part)
    path = bundle.part_path(part.name).parent / file.file
    inputs, outputs = ([entry.spec() for entry in entries] for entries in (part.inputs, part.outputs))
    return EngineSession(path, inputs, outputs, options, file.sha256, part.peak_activation_bytes)


def program_of(bundle: Bundle, part: Part) -> PartFile:
    """Raises SessionError for a part that brings none."""
    found = next((file for file in part.companions if file.file.endswith(PROGRAM_SUFFIX)), None)
    if found is None:
        raise SessionError(
            f"{part.name} of {bundle.path} brings no program for the torch engine",
            hint="export it again with --engine torch, or serve it with --engine runtime",
        )
    return found


class EngineSession(TorchSession):
    """`activation_bytes`: the most that the values between two layers of one row take, where it is known.

    Batches of any size: on a GPU they are padded to a bucket and replayed, where every tensor's first axis is the one
    open dimension; on the processor they run as they are.
    """

    format: ClassVar[str] = "torch-engine"

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        engine: TorchOptions = TorchOptions(),
        sha256: str = "",
        activation_bytes: int = 0,
    ) -> None:
        """`sha256` of the program names its packages in the cache; "" reads the file for it."""
        self.engine, self._sha256, self._activation_bytes = engine, sha256, activation_bytes
        self._readers: dict[str, FrameReader] = {}
        super().__init__(path, inputs, outputs, SessionOptions(threads=engine.threads))

    @property
    def is_compiled(self) -> bool:
        from edgekit.runtimes.torch_engine.runner import CompiledRunner

        return isinstance(self._runner, CompiledRunner)

    @property
    def runs(self) -> str:
        how = "compiled, checked against its eager form" if self.is_compiled else "eager"
        return f"torch {self.engine.precision} on {self._place}, {how}"

    def _load(self) -> None:
        self._torch = import_torch("the torch engine")
        from edgekit.runtimes.torch_engine.compiled import Target
        from edgekit.runtimes.torch_engine.device import find_device
        from edgekit.runtimes.torch_engine.lane import Lane
        from edgekit.runtimes.torch_engine.streams import Gpu
        from edgekit.runtimes.torch_engine.supply import find_runner

        engine, self._place = self.engine, find_device(self.engine.device)
        on_gpu = self._place.type == "cuda"
        target = Target(self._place, engine.precision, weights_outside=on_gpu)
        sha256 = self._sha256 or describe_file(self.path.name, self.path).sha256
        cache = engine.cache_dir or cache_root()
        with self._threads(), self._torch_errors():
            self._runner = find_runner(self.path, sha256, target, cache, compiles=engine.compile)
        lanes = on_gpu and self.is_batchable
        self._lane = Lane(self._runner, self.inputs, self.outputs, engine.buckets, Gpu(self._place)) if lanes else None
        self._member = Member(self.path.name, self._size_bytes(), self._upload, self._evict)
        self._budget = self._join()
        try:
            with self._torch.no_grad(), self._resident(), self._on_place(), self._torch_errors():
                self._prepare()
        except BaseException:
            self._leave()
            raise

    def _join(self) -> MemoryBudget | None:
        """The processor has no bound but the one that is asked for."""
        from edgekit.runtimes.torch_engine.device import device_bytes

        if self._place.type == "cpu" and self.engine.memory_bytes is None:
            self._upload()
            return None
        place = self._place
        return join_shared(str(place), self.engine.memory_bytes, lambda: device_bytes(place), self._member)

    def _prepare(self) -> None:
        """Captures the graphs, and tells the budget what they take where that is more than was estimated."""
        if self._lane is None or self._budget is None:
            return
        free, _ = self._torch.cuda.mem_get_info(self._place)
        self._lane.prepare()
        left, _ = self._torch.cuda.mem_get_info(self._place)
        self._budget.resize(self._member, max(self._member.size_bytes, self._runner.weight_bytes + free - left))

    def _upload(self) -> None:
        self._runner.upload()

    def _evict(self) -> None:
        if self._lane is not None:
            self._lane.release()
        self._runner.evict()
        if self._place.type == "cuda":
            self._torch.cuda.empty_cache()

    def _resident(self) -> AbstractContextManager[None]:
        return self._budget.use(self._member) if self._budget is not None else nullcontext()

    def _on_place(self) -> AbstractContextManager[None]:
        """Kernels are launched on torch's current GPU, which is the first one unless it is told."""
        on_gpu = self._place.type == "cuda"
        found: AbstractContextManager[None] = self._torch.cuda.device(self._place) if on_gpu else nullcontext()
        return found

    def _leave(self) -> None:
        if self._budget is not None:
            self._budget.leave(self._member)
        self._evict()

    @contextmanager
    def _torch_errors(self) -> Iterator[None]:
        """Torch's own errors as ours."""
        try:
            yield
        except self._torch.OutOfMemoryError as error:
            free, total = self._torch.cuda.mem_get_info(self._place)
            raise DeviceError(
                f"{self.path.name} needs more than {free:,} bytes on {self._place}, have {total:,} in all: {error}",
                hint="--gpu-memory bounds what models take together; or a smaller --precision, or smaller batches",
            ) from error
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            line = next(iter(str(error).strip().splitlines()), "")
            raise SessionError(f"torch failed on {self.path.name}: {line}") from error

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if self.is_batchable and len({len(array) for array in arrays}) > 1:
            rows = {spec.name: len(array) for spec, array in zip(self.inputs, arrays, strict=True)}
            raise InputError(f"rows of the inputs are {rows}, allowed the same number for all")
        with self._threads(), self._torch.no_grad(), self._resident(), self._on_place(), self._torch_errors():
            if self._lane is not None:
                return self._lane.run(arrays)
            tensors = as_tensors(self._torch, arrays)
            results = self._runner.run([tensor.to(self._place) for tensor in tensors])
            return [self._own(value, tensors) for value in results]

    def reads(self, digest: str, codec: Codec) -> bool:
        """Where the codec is one that the kernels know, and the model's one input its feature, on the device too."""
        if not isinstance(codec, TransformCodec) or not self.is_batchable:
            return False
        if [spec.shape[1:] for spec in self.inputs] != [codec.features[0].shape[1:]]:
            return False
        try:
            from edgekit.runtimes.torch_engine.frames import FrameReader

            self._readers[digest] = FrameReader(codec, self._place)
        except (ImportError, UsageError) as error:
            logger.info("frames of %s are decoded one by one: %s", self.path.name, error)
            return False
        return True

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Also CodedRows of a codec that it `reads`."""
        if not isinstance(feeds, CodedRows):
            return super().run(feeds)
        if self._closed:
            raise SessionError("this session is closed", hint="load the bundle again")
        reader, rates = self._readers[feeds.digest], feeds[RATES].tolist()

        def read(at: slice) -> Tensor:
            return reader.read(feeds.symbols[at], rates[at], feeds.shape)

        with self._threads(), self._torch.no_grad(), self._resident(), self._on_place(), self._torch_errors():
            if self._lane is not None:
                found: Sequence[np.ndarray] = self._lane.run_made(len(rates), read)
            else:
                made = read(slice(None))
                found = [self._own(value, [made]) for value in self._runner.run([made])]
        return dict(zip(self._output_names, found, strict=True))

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        """On the device, at the size that is given; it holds for as long as nothing evicts the weights."""
        arrays = [np.array(feeds[spec.name]) for spec in self.inputs]
        tensors = [tensor.to(self._place) for tensor in as_tensors(self._torch, arrays)]

        def call() -> object:
            with self._torch.no_grad(), self._on_place():
                return self._runner.run(tensors)

        return call

    def _close(self) -> None:
        self._leave()

    @cached_property
    def is_batchable(self) -> bool:
        """Requests can be joined, and no axis but the first is open."""
        shapes = [spec.shape for spec in (*self.inputs, *self.outputs)]
        return shares_batch(shapes) and all(isinstance(size, int) for shape in shapes for size in shape[1:])

    def _size_bytes(self) -> int:
        """Weights, activations of the largest bucket, and the buffers of its inputs and outputs."""
        rows = max(self.engine.buckets) if self.is_batchable else 1
        ends = sum(spec.size_bytes for spec in (*self.inputs, *self.outputs))
        return self._runner.weight_bytes + rows * (self._activation_bytes + ends)
