"""AOTInductor packages, compiled where they are served, and kept: the second start compiles nothing.

A package is machine code for one program, precision, device, torch and instruction set; its key is the digest of all of
these. On the processor the weights lie in the package, laid out for its kernels. For CUDA they lie beside it, so that
they can leave the GPU and come back; torch is handed the tensors as its own (`load_constants`, user-managed).

    <cache>/torch/<key>/package.pt2     weights.pt (CUDA; plain tensors, read with weights_only)     state.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

import edgekit
from edgekit.runtimes.torch_engine.check import Truth, input_values

logger = logging.getLogger("edgekit")

PACKAGE, WEIGHTS, STATE = "package.pt2", "weights.pt", "state.json"


@dataclass(frozen=True)
class Target:
    """What a package is compiled for. `weights_outside`: the package holds no weights."""

    device: torch.device
    precision: str
    weights_outside: bool

    def key(self, program_sha256: str) -> str:
        facts = {
            "program": program_sha256,
            "precision": self.precision,
            "device": self.device.type,
            "weights_outside": self.weights_outside,
            "torch": f"{torch.__version__} {torch.version.git_version} {torch.version.cuda}",
            "edgekit": edgekit.__version__,
            "processor": processor(),
            "gpu": gpu(self.device),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The architecture and every feature of the instruction set: inductor compiles with -march=native."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    features = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()} {' '.join(sorted(features.split())) or platform.processor()}"


def gpu(device: torch.device) -> str:
    """Name and compute capability; "" for the processor."""
    if device.type != "cuda":
        return ""
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"


@dataclass(frozen=True)
class Package:
    """A folder of the cache. `trouble`: why this package must not be used, "" where it passed its check."""

    folder: Path
    trouble: str = ""

    @property
    def path(self) -> Path:
        return self.folder / PACKAGE

    def weights(self) -> dict[str, Tensor]:
        """Those that lie outside, mapped from the file."""
        path = self.folder / WEIGHTS
        if not path.is_file():
            return {}
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return found


def find_package(cache: Path, key: str) -> Package | None:
    """The package that was compiled before, or why it failed its check then; None where there is none."""
    folder = cache / "torch" / key
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return Package(folder, str(state["trouble"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def missing_tools(target: Target) -> str:
    """Why nothing can be compiled here, or ""."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"the C++ compiler {compiler} is not installed (apt-get install g++, or set CXX)"
    if target.device.type == "cuda":
        try:
            import triton  # noqa: F401 - inductor writes its CUDA kernels in it
        except ModuleNotFoundError:
            return 'triton is not installed (pip install "edgekit[kernels]")'
    return ""


def compile_graph(program: ExportedProgram, graph: GraphModule, truth: Truth, target: Target, folder: Path) -> None:
    """Writes the package of `graph`, which is `program` in the precision of `target`, into `folder`.

    Raises whatever inductor, the C++ compiler and torch raise.
    """
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        served = torch.export.export(graph, truth.inputs, dynamic_shapes=_shapes(program), strict=False)
        if target.device.type == "cuda":
            from torch.export.passes import move_to_device_pass

            served = move_to_device_pass(served, str(target.device))
        configs: dict[str, Any] = {
            "freezing": not target.weights_outside,
            "aot_inductor.package_constants_in_so": not target.weights_outside,
            # The threads of the process that runs it, not of the one that compiled it.
            "cpp.dynamic_threads": True,
        }
        aoti_compile_and_package(served, package_path=str(folder / PACKAGE), inductor_configs=configs)
    if target.weights_outside:
        tensors = {**served.state_dict, **served.constants}
        held = {name: value.detach().cpu() for name, value in tensors.items() if isinstance(value, Tensor)}
        torch.save(held, folder / WEIGHTS)


def _shapes(program: ExportedProgram) -> tuple[dict[int, Any], ...]:
    """The open dimensions of the program, under the bounds that it has."""
    dims: dict[str, Any] = {}
    for symbol, bounds in program.range_constraints.items():
        most = int(bounds.upper) if bounds.upper < 1 << 30 else None
        dims[str(symbol)] = Dim(str(symbol), min=int(bounds.lower), max=most)
    return tuple(
        {dim: dims[str(size)] for dim, size in enumerate(value.shape) if str(size) in dims}
        for value in input_values(program).values()
    )


class Workshop:
    """A new folder of the cache: filled, then moved to its place in one step, or removed. `replace`: what stands in
    that place is damaged."""

    def __init__(self, cache: Path, key: str, *, replace: bool = False) -> None:
        """Raises OSError where the cache cannot be written."""
        self._cache, self._key, self._target = cache, key, cache / "torch" / key
        self._target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if replace or find_package(cache, key) is None:
            shutil.rmtree(self._target, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self._target.parent))

    def publish(self, trouble: str = "") -> Package:
        """Where another process was faster, what it left stands."""
        (self.folder / STATE).write_text(json.dumps({"trouble": trouble}), encoding="utf-8")
        try:
            self.folder.rename(self._target)
        except OSError:
            found = find_package(self._cache, self._key)
            if found is None:
                raise
            self.discard()
            return found
        return Package(self._target, trouble)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def open_package(path: Path, device: torch.device) -> Any:
    """The loader of a package: `run(list of tensors) -> list of tensors`. Raises RuntimeError."""
    from torch._inductor.package.package import load_package

    index = device.index if device.index is not None else -1
    return load_package(str(path), run_single_threaded=True, device_index=index)


def run_package(package: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    found: list[Tensor] = package.loader.run(list(tensors))
    return found
