"""What the run side weighs on a Raspberry Pi: the aarch64 wheels of `edgekit[onnx]`, unpacked, package by package.

    python samples/benchmarks/install_size.py
    python samples/benchmarks/install_size.py --extra litert --json
    python samples/benchmarks/install_size.py --pin onnxruntime==1.24.4

pip resolves the package's own metadata for Python 3.11 on 64-bit Raspberry Pi OS and downloads wheels; nothing is
installed. Sizes are those of the files in the wheels, without the bytecode that Python adds (about 15 % of the .py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from email.parser import Parser
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 150_000_000

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
    """One wheel: bytes as downloaded and as unpacked."""

    name: str
    version: str
    wheel_bytes: int
    unpacked_bytes: int


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
        headers = Parser().parsestr(archive.read(metadata).decode("utf-8"))
    return PackageSize(str(headers["Name"]).lower(), str(headers["Version"]), wheel.stat().st_size, unpacked)


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
    torch_free = all(package.name != "torch" for package in packages)
    within = total_bytes <= LIMIT_BYTES
    if options.json:
        row = {
            "schema_version": 1,
            "extra": options.extra,
            "platform": "linux/aarch64, Python 3.11",
            "total_bytes": total_bytes,
            "limit_bytes": LIMIT_BYTES,
            "within_limit": within,
            "torch_free": torch_free,
            "packages": [asdict(package) for package in packages],
        }
        print(json.dumps(row, indent=1))
    else:
        print("| package | version | download MB | unpacked MB |\n|---|---|---|---|")
        for package in packages:
            megabytes = f"{package.wheel_bytes / 1e6:.1f} | {package.unpacked_bytes / 1e6:.1f}"
            print(f"| {package.name} | {package.version} | {megabytes} |")
        download_bytes = sum(package.wheel_bytes for package in packages)
        print(f"| total | | {download_bytes / 1e6:.1f} | {total_bytes / 1e6:.1f} |")
        print(f"\nlimit {LIMIT_BYTES / 1e6:.0f} MB: {'met' if within else 'missed'}; torch: {not torch_free}")
    return 0 if within and torch_free else 1


if __name__ == "__main__":
    sys.exit(main())
