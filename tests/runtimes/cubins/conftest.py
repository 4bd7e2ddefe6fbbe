"""An emulated driver of CUDA, and a bundle with a transform codec and the kernels that decode it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle, Manifest, describe_file, write_bundle
from edgekit.bundle.manifest import Codec, Part, Provenance, Rate, TensorEntry, Variant
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.runtimes.cubins import Cubin

ARTIFACT = b"\x08\x0a" + bytes(range(256))
CHANNELS, POSITIONS, KEPT = 20, (3, 5), (20, 9, 2)
BIG_SHARED = "kmeans-assign"  # its larger tiles take more shared memory than a program may without asking


def scene(samples: int, seed: int) -> np.ndarray:
    fade = np.exp(-np.arange(CHANNELS) / 3).reshape(-1, 1, 1)
    return (4 * np.random.default_rng(seed).laplace(size=(samples, CHANNELS, *POSITIONS)) * fade).astype(np.float32)


def tables() -> bytes:
    return fit_transform_tables(scene(60, 0), (0.2, 0.7, 1.9), 1, True, rounding=0.4, kept=KEPT)


def plain_bundle(path: Path, sign_key: Path | None = None) -> Path:
    """Without kernels."""
    rows = tuple(Rate(bytes_mean=1, bytes_p95=1, drop=0) for _ in KEPT)
    feature = TensorEntry(name="feature", dtype="float32", shape=("batch", CHANNELS, *POSITIONS))
    files = {"parts/net.onnx": ARTIFACT, "parts/net.onnx.data": ARTIFACT * 2, "assets/codec.tables": tables()}
    manifest = Manifest(
        name="net",
        task="classification",
        device="raspberry-pi-5",
        parts=(
            Part(
                **describe_file("net.onnx", ARTIFACT).model_dump(),
                name="net",
                format="onnx",
                precision="fp32",
                companions=(describe_file("net.onnx.data", ARTIFACT * 2),),
                inputs=(feature,),
                outputs=(feature,),
            ),
        ),
        variants=(Variant(name="net", parts=("net",)),),
        codecs=(Codec(name="cut", kind="transform", features=(feature,), tables="codec.tables", rates=rows),),
        assets=(describe_file("codec.tables", files["assets/codec.tables"]),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="sample", source="net", source_sha256="", recipe={}
        ),
    )
    return write_bundle(path, manifest, files, {"schema_version": 1}, "<!doctype html>", sign_key=sign_key)


def edgekit(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: here Triton interprets, and compiles nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True, text=True, env=environment, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="session")
def packed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("packed")
    whole = plain_bundle(folder / "net.edgekit")
    names = f"ragged-dequantize,ragged-decode,{BIG_SHARED}"
    edgekit(
        "kernels", "pack", whole, "--arch", "sm_87,sm_80,sm_100", "--kernels", names, "-o", folder / "packed.edgekit"
    )
    return folder / "packed.edgekit"


@pytest.fixture
def packed(packed_path: Path) -> Bundle:
    return Bundle.open(packed_path)


@pytest.fixture(scope="session")
def codec() -> TransformCodec:
    entry = TensorEntry(name="feature", dtype="float32", shape=("batch", CHANNELS, *POSITIONS))
    return TransformCodec([entry.spec()], len(KEPT), tables())


@dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    parameters: bytes


class Emulator:
    """The emulated driver as the test sees it; `path` is the library that code under test opens."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.emulate_hash.restype = ctypes.c_uint64
        self._library.emulate_decode.argtypes = (ctypes.c_uint64, ctypes.c_void_p)

    def device(
        self, arch: str = "sm_87", gpus: int = 1, shared_bytes: int = 163 * 1024, memory_bytes: int = 1 << 30
    ) -> None:
        self._library.emulate_device(gpus, int(arch[3]), int(arch[4]), shared_bytes, ctypes.c_size_t(memory_bytes))

    def fail(self, function: str, status: int) -> None:
        """The next call of `function`."""
        self._library.emulate_failure(function.encode(), status)

    @property
    def alive(self) -> tuple[int, int, int]:
        """Contexts, modules and pieces of memory that were not given back."""
        return tuple(getattr(self._library, f"emulate_{kind}")() for kind in ("contexts", "modules", "blocks"))

    @property
    def launches(self) -> list[Launch]:
        found = []
        for index in range(self._library.emulate_launches()):
            five, name, content = (ctypes.c_uint32 * 5)(), ctypes.create_string_buffer(128), (ctypes.c_ubyte * 1024)()
            size = self._library.emulate_launch(index, five, name, content)
            found.append(Launch(name.value.decode(), tuple(five[:3]), five[3], five[4], bytes(content[:size])))
        return found

    def run(self, one: Cubin, code: bytes) -> None:
        """From now on a launch of this code decodes, as its constants and types say."""
        kinds: Mapping[str, str] = {argument.name: argument.type for argument in one.arguments}
        constant = one.constants
        wide = {"*i8": 1, "*i16": 2, "*bf16": 2, "*fp32": 4}
        ten = (
            int("inverse" in kinds), wide[kinds["symbols"]], wide[kinds["dense"]], constant["COMPONENTS"],
            constant.get("CHANNELS", constant["COMPONENTS"]), constant["REACH"], constant["BY_POSITION"],
            constant["CHANNELS_FIRST"], constant["BLOCK_P"], constant["BLOCK_C"],
        )  # fmt: skip
        self._library.emulate_decode(self._library.emulate_hash(code), (ctypes.c_int * 10)(*ten))


@pytest.fixture(scope="session")
def emulator_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the driver is emulated by a library that is compiled here")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so"
    source = Path(__file__).with_name("emulated_driver.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", path, source, "-lm"], check=True, timeout=120)
    return path


_NUMBERS = count()


@pytest.fixture
def emulator(emulator_library: Path, tmp_path: Path) -> Emulator:
    """A copy for each test: its state is that of the library."""
    copy = tmp_path / f"libcuda-{next(_NUMBERS)}.so"
    shutil.copy(emulator_library, copy)
    return Emulator(copy)
