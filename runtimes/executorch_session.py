"""ExecuTorch (.pte) through its Python binding. The wheel brings torch; small devices run the same file from C++."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import MissingExtraError, SessionError
from edgekit.runtimes.quiet import stderr_silenced
from edgekit.runtimes.session import Feeds, Session
from edgekit.runtimes.torch_session import as_tensors, import_torch

# ExecuTorch has one thread pool per process, and resizing it while a method runs is undefined: runs and resizes take
# turns, so that each session runs on the number of threads that it was opened with.
_POOL = threading.Lock()


class ExecutorchSession(Session):
    format: ClassVar[str] = "executorch"

    def _load(self) -> None:
        self._torch = import_torch("running .pte programs")
        try:
            with stderr_silenced():
                import executorch.extension.pybindings.portable_lib as binding

                binding._threadpool_get_thread_count()  # the first call counts the processors, aloud
        except ModuleNotFoundError as error:
            raise MissingExtraError("executorch", "executorch", "running .pte programs") from error
        self._binding = binding
        self._threads = self.options.threads or os.cpu_count() or 1
        try:
            program = binding._load_program(
                str(self.path), program_verification=binding.Verification.InternalConsistency
            )
            with self._pool():
                self._method = program.load_method("forward")
        except RuntimeError as error:
            raise SessionError(
                f"ExecuTorch refuses {self.path.name}: {error}",
                hint="the file is damaged, or needs operators or a backend that this runtime was built without",
            ) from error
        self._program = program  # the method points into the program's mapped file
        meta = self._method.method_meta()
        if (meta.num_inputs(), meta.num_outputs()) != (len(self.inputs), len(self.outputs)):
            raise SessionError(
                f"{self.path.name} has {meta.num_inputs()} inputs and {meta.num_outputs()} outputs, "
                f"the manifest names {len(self.inputs)} and {len(self.outputs)}"
            )

    def _pool(self) -> _Pool:
        """The process's thread pool, once this session may use it, with as many threads as it wants."""
        return _Pool(self._binding, self._threads)

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        tensors = as_tensors(self._torch, arrays)
        try:
            with self._pool():
                results = self._method(tensors)
        except RuntimeError as error:
            raise SessionError(f"ExecuTorch failed on {self.path.name}: {error}") from error
        return [result.numpy() for result in results]

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        method = self._method
        tensors = as_tensors(self._torch, [np.array(feeds[spec.name]) for spec in self.inputs])
        with self._pool():
            return lambda: method(tensors)

    def _close(self) -> None:
        del self._method, self._program


class _Pool:
    def __init__(self, binding: Any, threads: int) -> None:
        self._binding, self._threads = binding, threads

    def __enter__(self) -> None:
        _POOL.acquire()
        try:
            if self._binding._threadpool_get_thread_count() != self._threads:
                with stderr_silenced():
                    self._binding._unsafe_reset_threadpool(self._threads)
        except BaseException:
            _POOL.release()
            raise

    def __exit__(self, *_: object) -> None:
        _POOL.release()
