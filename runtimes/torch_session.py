"""torch.export programs (.pt2), run by torch itself. Only a host or a server loads this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import EdgekitError, MissingExtraError, SessionError
from edgekit.runtimes.session import Feeds, Session
from edgekit.runtimes.torch_engine.program import load_program


def import_torch(purpose: str) -> Any:
    """Raises MissingExtraError."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "export", purpose) from error
    return torch


def as_tensors(torch: Any, arrays: Sequence[np.ndarray]) -> list[Any]:
    """The same memory as tensors; an array that is read-only or not contiguous is copied."""
    return [
        torch.from_numpy(array if array.flags.carray else np.array(array, order="C", copy=True)) for array in arrays
    ]


class TorchSession(Session):
    """`threads` holds while this session runs and is put back after: torch has one setting per process."""

    format: ClassVar[str] = "torch"

    def _load(self) -> None:
        self._torch = import_torch(f"running {self.path.suffix} programs")
        self._device = "cpu"
        try:
            self._program = self._open()
        except EdgekitError:
            raise
        except Exception as error:  # the loaders raise whatever their archive, JSON and linker layers raise
            raise SessionError(
                f"torch refuses {self.path.name}: {type(error).__name__}: {_first_line(error)}",
                hint="the file is damaged, or was made by another version of torch",
            ) from error

    def _open(self) -> Callable[..., Any]:
        """The program as a callable on tensors; sets `self._device` where it is not the processor."""
        module: Callable[..., Any] = load_program(self.path).module(check_guards=False)
        return module

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        torch = self._torch
        tensors = as_tensors(torch, arrays)
        if self._device != "cpu":
            tensors = [tensor.to(self._device) for tensor in tensors]
        with self._threads():
            try:
                with torch.no_grad():
                    result = self._program(*tensors)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise SessionError(f"torch failed on {self.path.name}: {_first_line(error)}") from error
        return [self._own(value, tensors) for value in self._leaves(result)]

    def _leaves(self, result: Any) -> list[Any]:
        if isinstance(result, self._torch.Tensor):
            return [result]
        leaves = self._torch.utils._pytree.tree_leaves(dict(result) if isinstance(result, dict) else result)
        return [leaf for leaf in leaves if isinstance(leaf, self._torch.Tensor)]

    def _own(self, value: Any, tensors: Sequence[Any]) -> np.ndarray:
        """As numpy; a result that is (a view of) an input or a constant of the program is copied."""
        array: np.ndarray = value.detach().cpu().numpy()
        shared = any(np.may_share_memory(array, tensor.numpy()) for tensor in tensors if tensor.device.type == "cpu")
        return array.copy() if shared else array

    @contextmanager
    def _threads(self) -> Iterator[None]:
        wanted, before = self.options.threads, self._torch.get_num_threads()
        if wanted is None or wanted == before:
            yield
            return
        self._torch.set_num_threads(wanted)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        torch, program = self._torch, self._program
        arrays = [np.array(feeds[spec.name]) for spec in self.inputs]

        def call() -> object:
            with torch.no_grad():
                return program(*(torch.from_numpy(array) for array in arrays))

        return call

    def _close(self) -> None:
        del self._program


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
