"""AOTInductor packages (.pt2): machine code for x86 or CUDA, loaded by torch. Trust the file first: it is a library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import SessionError
from edgekit.runtimes.session import Feeds
from edgekit.runtimes.torch_session import TorchSession, as_tensors


class InductorSession(TorchSession):
    """The package says for which processor it was compiled; inputs go there, and outputs come back."""

    format: ClassVar[str] = "inductor"

    def _open(self) -> Callable[..., Any]:
        from torch._inductor.package.package import load_package

        package = load_package(str(self.path), run_single_threaded=True)
        self._device = str(package.get_metadata().get("AOTI_DEVICE_KEY", "cpu"))
        # the loader runs flat tensors; its Python wrapper would parse the call's structure again at every run
        self._loader = package.loader
        return package

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        tensors = as_tensors(self._torch, arrays)
        if self._device != "cpu":
            tensors = [tensor.to(self._device) for tensor in tensors]
        with self._threads():
            try:
                results = self._loader.run(tensors)
            except RuntimeError as error:
                raise SessionError(f"the compiled model {self.path.name} failed: {error}") from error
        return [self._own(value, tensors) for value in results]

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        loader = self._loader
        tensors = as_tensors(self._torch, [np.array(feeds[spec.name]) for spec in self.inputs])
        if self._device != "cpu":
            tensors = [tensor.to(self._device) for tensor in tensors]
        return lambda: loader.run(tensors)

    def _close(self) -> None:
        super()._close()
        del self._loader
