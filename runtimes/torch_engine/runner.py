"""A program on its device, eager or compiled, whose weights can leave the device and come back."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekit.runtimes.torch_engine.compiled import Package, open_package, run_package
from edgekit.runtimes.torch_engine.precision import put


class Runner(ABC):
    """`weight_bytes`: on the device. Nothing lies there before `upload`, and after `evict`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    @abstractmethod
    def weight_bytes(self) -> int: ...

    @abstractmethod
    def upload(self) -> None: ...

    @abstractmethod
    def evict(self) -> None: ...

    @abstractmethod
    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors on the device, in and out, on the current stream."""


class EagerRunner(Runner):
    """`build` gives the graph on the processor. For a GPU it is kept there as the copy that evicted weights come back
    from; on the processor an evicted graph is built again from its file."""

    def __init__(self, build: Callable[[], GraphModule], device: torch.device) -> None:
        super().__init__(device)
        self._build = build
        self._host: GraphModule | None = build()
        self._size = sum(value.nbytes for value in _tensors(self._host))
        self._graph: GraphModule | None = None
        self._constants: set[int] = set()

    @property
    def weight_bytes(self) -> int:
        return self._size

    def upload(self) -> None:
        host = self._host if self._host is not None else self._build()
        if self.device.type == "cpu":
            self._graph, self._host = host, None
        else:
            self._graph, self._host = to_device(host, self.device), host
        self._constants = {value.untyped_storage().data_ptr() for value in _tensors(self._graph)}

    def evict(self) -> None:
        self._graph = None

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        assert self._graph is not None
        values = self._graph(*tensors)
        return [value.clone() if value.untyped_storage().data_ptr() in self._constants else value for value in values]


class CompiledRunner(Runner):
    """A package with its weights inside is opened anew from its file; one without gets tensors that come and go."""

    def __init__(self, package: Package, device: torch.device) -> None:
        super().__init__(device)
        self._path, self._host = package.path, package.weights()
        self._opened: Any = None
        self._on_device: dict[str, Tensor] = {}
        inside = 0 if self._host else package.path.stat().st_size
        self._size = inside + sum(value.nbytes for value in self._host.values())

    @property
    def weight_bytes(self) -> int:
        return self._size

    def upload(self) -> None:
        """Raises RuntimeError for a package that is damaged, or asks for weights that it did not come with."""
        if self._opened is None:
            self._opened = open_package(self._path, self.device)
        if not self._host:
            return
        names = self._opened.get_constant_fqns()
        lacking = sorted(set(names) - self._host.keys())
        if lacking:
            raise RuntimeError(f"the package asks for {', '.join(lacking[:3])}, which the program does not have")
        self._on_device = {name: self._host[name].to(self.device, copy=True) for name in names}
        self._opened.load_constants(self._on_device, check_full_update=True, user_managed=True)

    def evict(self) -> None:
        """The code of a package without weights stays open: it is small."""
        if not self._host:
            self._opened = None
        self._on_device = {}

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return run_package(self._opened, tensors)


def to_device(graph: GraphModule, device: torch.device) -> GraphModule:
    """A copy of `graph` with its constants on `device`, which makes there what it makes from nothing."""
    found = GraphModule(graph, copy.deepcopy(graph.graph))
    for name in {str(node.target) for node in found.graph.nodes if node.op == "get_attr"}:
        path, _, leaf = name.rpartition(".")
        put(found, name, getattr(found.get_submodule(path), leaf).detach().to(device))
    for node in found.graph.nodes:
        node.args, node.kwargs = (_moved(values, device) for values in (node.args, node.kwargs))
    found.recompile()
    return found


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        return device
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    return {key: _moved(one, device) for key, one in value.items()} if isinstance(value, dict) else value


def _tensors(graph: GraphModule) -> list[Tensor]:
    return [*graph.parameters(), *graph.buffers()]
