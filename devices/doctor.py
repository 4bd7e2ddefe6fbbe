"""`edgekit doctor`: what is installed, what can run here, what is missing and the exact command that adds it.

What an extra brings is read from edgekit's own package metadata, so that pyproject.toml stays the only list.
"""

from __future__ import annotations

import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from edgekit.devices.machine import Machine, this_machine
from edgekit.registry import EXPORTERS, SESSIONS

REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?\s*((?:[<>=!~]=?[^;,\s]+,?\s*)*)(?:;\s*(.*))?$")
EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")

# The extra that brings what runs a format, and one package of its that must be there. TensorRT comes with JetPack.
RUN_EXTRA = {
    "onnx": ("onnx", ("onnxruntime", "onnxruntime-gpu")),
    "tensorrt": ("onnx", ("onnxruntime-gpu",)),
    "litert": ("litert", ("ai-edge-litert", "tflite-runtime")),
    "executorch": ("executorch", ("executorch",)),
    "inductor": ("executorch", ("torch",)),
    "torch": ("executorch", ("torch",)),
}
EXPORT_PACKAGES = {
    "onnx": ("torch", "onnx", "onnxscript"),
    "tensorrt": ("torch", "onnx", "onnxscript"),
    "litert": ("torch", "litert-torch", "ai-edge-quantizer"),
    "executorch": ("torch", "executorch", "torchao"),
    "inductor": ("torch",),
}
TOOLS = {
    "g++": ("compiles AOTInductor artifacts", "apt-get install g++"),
    "trtexec": ("builds TensorRT engines on a Jetson", "apt-get install libnvinfer-bin"),
    "qemu-aarch64-static": ("tests the run side as on ARM", "apt-get install qemu-user-static"),
}


@dataclass(frozen=True)
class Package:
    """`version` None: not installed. `wanted`: what edgekit asks for; `fits`: the version satisfies it."""

    name: str
    version: str | None
    wanted: str
    extra: str
    fits: bool


@dataclass(frozen=True)
class FormatState:
    """`run_command` and `export_command` are empty where nothing is missing."""

    format: str
    can_run: bool
    can_export: bool
    run_command: str
    export_command: str


@dataclass(frozen=True)
class Tool:
    name: str
    path: str | None
    purpose: str
    command: str


@dataclass(frozen=True)
class Diagnosis:
    edgekit: str
    python: str
    machine: Machine
    packages: tuple[Package, ...]
    formats: tuple[FormatState, ...]
    tools: tuple[Tool, ...]


def diagnose() -> Diagnosis:
    return Diagnosis(
        edgekit=version("edgekit"),
        python=platform.python_version(),
        machine=this_machine(),
        packages=tuple(_packages(requires("edgekit") or [])),
        formats=tuple(_format(name) for name in [*EXPORTERS, *(name for name in SESSIONS if name not in EXPORTERS)]),
        tools=tuple(Tool(name, shutil.which(name), *about) for name, about in TOOLS.items()),
    )


def installed(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def satisfies(got: str, wanted: str) -> bool:
    """`wanted` is a comma-separated list of ==, >=, <=, >, <, != comparisons; suffixes such as +cpu are ignored."""
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        match = re.match(r"(==|>=|<=|!=|~=|>|<)\s*(.+)", clause)
        assert match is not None, clause
        left, right = _numbers(got), _numbers(match[2])
        width = max(len(left), len(right))
        a, b = left + (0,) * (width - len(left)), right + (0,) * (width - len(right))
        allowed = {"==": a == b, ">=": a >= b, "<=": a <= b, "!=": a != b, "~=": a >= b, ">": a > b, "<": a < b}
        if not allowed[match[1]]:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", text)[0]))


def _packages(requirements: list[str]) -> list[Package]:
    """One row a package: the extra with the strictest wish names it (a pin over a bound)."""
    rows: dict[str, Package] = {}
    for line in requirements:
        match = REQUIREMENT.match(line.strip())
        assert match is not None, line
        name, wanted, marker = match[1], match[3].strip(), match[4] or ""
        named = EXTRA.search(marker)
        extra = named[1] if named else ""
        if name == "edgekit" or ("python_version" in marker and installed(name) is None):
            continue
        known = rows.get(name)
        if known is None or ("==" in wanted and "==" not in known.wanted):
            got = installed(name)
            rows[name] = Package(name, got, wanted, extra, got is not None and satisfies(got, wanted))
    return list(rows.values())


def _format(name: str) -> FormatState:
    extra, runners = RUN_EXTRA.get(name, ("all", ()))
    can_run = any(installed(package) for package in runners)
    missing = [package for package in EXPORT_PACKAGES.get(name, ()) if installed(package) is None]
    can_export = name in EXPORTERS and not missing
    if name == "tensorrt":
        how = "run it on the Jetson: JetPack brings TensorRT; pip install onnxruntime-gpu from NVIDIA's Jetson index"
    else:
        how = f'pip install "edgekit[{extra}]"'
    return FormatState(
        format=name,
        can_run=can_run,
        can_export=can_export,
        run_command="" if can_run else how,
        export_command="" if can_export or name not in EXPORTERS else 'pip install "edgekit[export]"',
    )
