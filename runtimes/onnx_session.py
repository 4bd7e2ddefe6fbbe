"""ONNX Runtime: the `.onnx` file on the CPU, on CUDA, or through the TensorRT provider."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import MissingExtraError, SessionError, UnknownNameError
from edgekit.runtimes.session import Feeds, Session
from edgekit.tensors import DTYPES, TensorSpec

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

ORT_DTYPES = {
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

_ERRORS_ONLY = 3

# Fusions that make the CPU slower: the fused SkipLayerNormalization is scalar. At 64 x 384 float32, one thread,
# ONNX Runtime 1.31 on AVX512: 126 us fused, 21 us as Add and LayerNormalization.
_SLOW_ON_CPU = ("SkipLayerNormFusion", "BiasGeluFusion")
# Of a file with integer weights, MatMul and Add become a Gemm where all sizes are fixed, before the integers are looked
# at; it then runs in float, its weights decoded each time. MiniLM, 128 tokens, static int8: 57 ms fused, 18 ms apart.
_SLOW_IN_INTEGERS = ("MatMulAddFusion",)


class OnnxSession(Session):
    """Runs every node on the chosen provider, what it cannot run on the CPU.

    Inputs are read where they lie (a contiguous numpy array is wrapped, not copied); outputs are new arrays. IO
    binding was measured and left out: on the CPU it saves nothing over `InferenceSession.run`.
    """

    format: ClassVar[str] = "onnx"
    preference: ClassVar[tuple[str, ...]] = ("cuda", "cpu")

    def _load(self) -> None:
        runtime = _import_runtime(self.format)
        settings = runtime.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.inter_op_num_threads = 1
        if self.options.threads is not None:
            settings.intra_op_num_threads = self.options.threads
        self.provider = self._choose_provider(runtime.get_available_providers())
        try:
            self._runtime = runtime.InferenceSession(
                str(self.path),
                settings,
                providers=self._providers(),
                disabled_optimizers=self.slow_fusions() if self.provider == "cpu" else None,
            )
        except _failures(runtime) as error:
            raise SessionError(
                f"ONNX Runtime {runtime.__version__} refuses {self.path.name}: {_first_line(error)}",
                hint="the file may be truncated, or need a newer ONNX Runtime; export again or upgrade onnxruntime",
            ) from error
        self._catch = _failures(runtime)
        self._feed_names, self._feed_casts = self._match(self.inputs, self._runtime.get_inputs(), "input")
        self._fetch_names, fetch_casts = self._match(self.outputs, self._runtime.get_outputs(), "output")
        self._back_casts = [
            None if cast is None else DTYPES[spec.dtype] for spec, cast in zip(self.outputs, fetch_casts, strict=True)
        ]
        self._casts = any(cast is not None for cast in (*self._feed_casts, *self._back_casts))
        self._call = self._runtime.run

    def slow_fusions(self) -> list[str]:
        """The optimizers of ONNX Runtime that make this file slower on the CPU."""
        return [*_SLOW_ON_CPU, *(_SLOW_IN_INTEGERS if _holds(self.path, b"DequantizeLinear") else ())]

    def _choose_provider(self, available: Sequence[str]) -> str:
        """Raises UnknownNameError, or SessionError for a provider that this build of ONNX Runtime lacks."""
        wanted = self.options.provider
        if wanted is None:
            return next(name for name in self.preference if PROVIDERS[name] in available)
        if wanted not in PROVIDERS:
            raise UnknownNameError("provider", wanted, PROVIDERS)
        if PROVIDERS[wanted] not in available:
            raise SessionError(
                f"this ONNX Runtime has no provider {wanted!r}; it has: {', '.join(available)}",
                hint="install onnxruntime-gpu (NVIDIA's own wheel on a Jetson), or take the provider cpu",
            )
        return wanted

    def _providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """The chosen provider first, with its settings, then those that it falls back on."""
        chain: list[str | tuple[str, dict[str, str]]] = []
        if self.provider == "tensorrt":
            chain.append((PROVIDERS["tensorrt"], self._tensorrt_settings()))
        if self.provider in ("tensorrt", "cuda"):
            chain.append(PROVIDERS["cuda"])
        return [*chain, PROVIDERS["cpu"]]

    def _tensorrt_settings(self) -> dict[str, str]:
        """Of the companion file; a relative cache folder in it is taken below `cache_dir`, else beside the artifact."""
        companion = settings_path(self.path)
        settings: dict[str, str] = {}
        if companion.exists():
            try:
                table = json.loads(companion.read_text(encoding="utf-8"))
                settings = {str(key): str(value) for key, value in table["provider_options"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SessionError(
                    f"{companion.name} does not hold TensorRT provider settings: {error}", hint="export again"
                ) from error
        base = self.options.cache_dir or self.path.parent
        for key in ("trt_engine_cache_path", "trt_timing_cache_path"):
            if key in settings:
                folder = base / settings[key]
                folder.mkdir(parents=True, exist_ok=True)
                settings[key] = str(folder)
        return settings

    def _match(
        self, specs: Sequence[TensorSpec], found: Sequence[Any], kind: str
    ) -> tuple[list[str], list[np.dtype | None]]:
        """The file's names in the order of the specs, and what to cast each to: floats may differ in width only."""
        types = {entry.name: entry.type for entry in found}
        if set(types) != {spec.name for spec in specs}:
            raise SessionError(
                f"{self.path.name} has the {kind}s {sorted(types)}, the manifest says {[s.name for s in specs]}",
                hint="the artifact and its manifest do not belong together; export again",
            )
        casts: list[np.dtype | None] = []
        for spec in specs:
            dtype = ORT_DTYPES.get(types[spec.name])
            both_float = dtype is not None and dtype.startswith("float") and spec.dtype.startswith("float")
            if dtype != spec.dtype and not both_float:
                raise SessionError(
                    f"{self.path.name} has the {kind} {spec.name!r} as {types[spec.name]}, the manifest says "
                    f"{spec.dtype}",
                    hint="the artifact and its manifest do not belong together; export again",
                )
            casts.append(None if dtype == spec.dtype else DTYPES[str(dtype)])
        return [spec.name for spec in specs], casts

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            if not self._casts:
                feeds = dict(zip(self._feed_names, arrays, strict=True))
                values: list[np.ndarray] = self._call(self._fetch_names, feeds)
                return values
            cast = [a if to is None else a.astype(to) for a, to in zip(arrays, self._feed_casts, strict=True)]
            fetched = self._call(self._fetch_names, dict(zip(self._feed_names, cast, strict=True)))
        except self._catch as error:
            raise SessionError(f"ONNX Runtime failed on {self.path.name}: {_first_line(error)}") from error
        return [a if to is None else a.astype(to) for a, to in zip(fetched, self._back_casts, strict=True)]

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        """`InferenceSession.run` with the names and arrays made ready beforehand."""
        run, names = self._runtime.run, self._fetch_names
        ready = {
            name: array if to is None else array.astype(to)
            for (name, array), to in zip(((n, feeds[n]) for n in self._feed_names), self._feed_casts, strict=True)
        }
        return lambda: run(names, ready)

    def _close(self) -> None:
        del self._runtime, self._call


class TensorrtSession(OnnxSession):
    """The same kind of file, through the TensorRT provider; without one it runs on CUDA or the CPU, same numbers.

    On the CPU the file is run exactly as its Q/DQ nodes say, which is how an artifact for a Jetson is checked on the
    machine that made it; TensorRT itself rounds in its own kernels.
    """

    format: ClassVar[str] = "tensorrt"
    preference: ClassVar[tuple[str, ...]] = ("tensorrt", "cuda", "cpu")


def settings_path(artifact: Path) -> Path:
    """Where the TensorRT provider's settings lie, beside `artifact`."""
    return artifact.with_name(f"{artifact.stem}-ort_tensorrt.json")


def _holds(path: Path, word: bytes) -> bool:
    """Whether `word` stands in the file, which is not read into memory for that; False for an empty one."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(word) >= 0


def _import_runtime(format: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", f"running a part in the format {format}") from error
    return onnxruntime


def _failures(runtime: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: a dozen exception classes without a base of their own."""
    state = runtime.capi.onnxruntime_pybind11_state
    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
