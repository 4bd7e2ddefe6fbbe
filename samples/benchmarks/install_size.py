"""What the run side weighs on a Raspberry Pi: the aarch64 wheels of `edgekit[onnx]`, unpacked, package by package.

    python samples/benchmarks/install_size.py
    python samples/benchmarks/install_size.py --extra litert --json
    python samples/benchmarks/install_size.py --pin onnxruntime==1.24.4

pip resolves the package's own metadata for Python 3.11 on 64-bit Raspberry Pi OS and downloads wheels; nothing is
installed. `unpacked` is the files in the wheels, `bytecode` what pip compiles beside them, which `--no-compile` and
PYTHONDONTWRITEBYTECODE spare. The limit is on the first.
"""

from __future__ import annotations

import argparse
import json
import marshal
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import asdict, dataclass
from email.parser import Parser
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 150_000_000
PYC_HEADER_BYTES = 16

# Newest first: Debian 12, which Raspberry Pi OS follows, has glibc 2.36 and takes them all.
PLATFORMS = (
    "manylinux_2_34_aarch64",
    "manylinux_2_31_aarch64",
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux2014_aarch64",
    "manylinux_2_17_aarch64",
)
WINGS = ("edgekit", "exporters", "quantizers", "runtimes", "devices")
METADATA_FILES = ("pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class PackageSize:
    """One wheel: bytes as downloaded, as unpacked, and of the bytecode of its modules."""

    name: str
    version: str
    wheel_bytes: int
    unpacked_bytes: int
    bytecode_bytes: int


def build_wheel(destination: Path) -> Path:
    """The wheel of this repository, built from a copy so that no build folder is left in the tree.

    Raises subprocess.CalledProcessError, with pip's own words in `stderr`.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-wheel-") as folder:
        copy = Path(folder)
        for name in WINGS:
            shutil.copytree(
                REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        for name in METADATA_FILES:
            if (REPOSITORY / name).is_file():
                shutil.copy2(REPOSITORY / name, copy / name)
        pip("wheel", "--no-deps", "--wheel-dir", str(destination), str(copy))
    (wheel,) = destination.glob("edgekit-*.whl")
    return wheel


def download_wheels(
    requirements: list[str], destination: Path, *, constraints: tuple[str, ...] = (), python: str = "3.11"
) -> list[Path]:
    """aarch64 wheels of `requirements` and of all that they need. Raises subprocess.CalledProcessError."""
    destination.mkdir(parents=True, exist_ok=True)
    pins = destination / "constraints.txt"
    pins.write_text("\n".join(constraints), encoding="utf-8")
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:", *platforms]
    pip("download", *target, "--constraint", str(pins), "--dest", str(destination), *requirements)
    pins.unlink()
    return sorted(destination.glob("*.whl"))


def pip(*arguments: str) -> None:
    """Runs this interpreter's pip. Raises subprocess.CalledProcessError."""
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )


def measure(wheel: Path) -> PackageSize:
    """Reads the wheel's own list of files; unpacks nothing."""
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        metadata = next(
            name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        bytecode = sum(bytecode_bytes(archive.read(name)) for name in archive.namelist() if name.endswith(".py"))
        headers = Parser().parsestr(archive.read(metadata).decode("utf-8"))
    return PackageSize(str(headers["Name"]).lower(), str(headers["Version"]), wheel.stat().st_size, unpacked, bytecode)


def bytecode_bytes(source: bytes) -> int:
    """The .pyc file of a module; 0 for one that this interpreter cannot compile (a template, another version's)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            code = compile(source, "module.py", "exec", dont_inherit=True)
        except SyntaxError:
            return 0
    return PYC_HEADER_BYTES + len(marshal.dumps(code))


def install_size(extra: str, pins: tuple[str, ...] = ()) -> list[PackageSize]:
    """Every package of `edgekit[extra]` for a Raspberry Pi, heaviest first."""
    with tempfile.TemporaryDirectory(prefix="edgekit-size-") as folder:
        own = build_wheel(Path(folder) / "own")
        wheels = download_wheels([f"{own}[{extra}]"], Path(folder) / "wheels", constraints=pins)
        return sorted((measure(wheel) for wheel in wheels), key=lambda size: -size.unpacked_bytes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", default="onnx", help="which extra of edgekit (default: onnx)")
    parser.add_argument("--pin", action="append", default=[], help="a pip constraint, such as onnxruntime==1.24.4")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    try:
        packages = install_size(options.extra, tuple(options.pin))
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    total_bytes = sum(package.unpacked_bytes for package in packages)
    bytecode_total = sum(package.bytecode_bytes for package in packages)
    torch_free = all(package.name != "torch" for package in packages)
    within = total_bytes <= LIMIT_BYTES
    if options.json:
        row = {
            "schema_version": 1,
            "extra": options.extra,
            "platform": "linux/aarch64, Python 3.11",
            "total_bytes": total_bytes,
            "bytecode_bytes": bytecode_total,
            "limit_bytes": LIMIT_BYTES,
            "within_limit": within,
            "torch_free": torch_free,
            "packages": [asdict(package) for package in packages],
        }
        print(json.dumps(row, indent=1))
    else:
        print("| package | version | download MB | unpacked MB | bytecode MB |\n|---|---|---|---|---|")
        for package in packages:
            sizes = (package.wheel_bytes, package.unpacked_bytes, package.bytecode_bytes)
            print(f"| {package.name} | {package.version} | " + " | ".join(f"{size / 1e6:.1f}" for size in sizes) + " |")
        totals = (sum(package.wheel_bytes for package in packages), total_bytes, bytecode_total)
        print("| total | | " + " | ".join(f"{size / 1e6:.1f}" for size in totals) + " |")
        print(f"\nlimit {LIMIT_BYTES / 1e6:.0f} MB: {'met' if within else 'missed'}; torch: {not torch_free}")
    return 0 if within and torch_free else 1


if __name__ == "__main__":
    sys.exit(main())
