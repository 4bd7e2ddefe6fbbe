"""A Raspberry Pi without one: Debian arm64's Python 3.11 and the run side, under qemu's user-mode emulation.

    machine = Machine()
    machine.prepare()                                  # seconds when cached, about a minute from nothing
    machine.run(["-c", "print(1)"], cpu="cortex-a72")  # a Raspberry Pi 4; cortex-a76 is a Pi 5

Nothing is installed and root is not needed: packages come through the machine's own apt and pip, are unpacked below
`EDGEKIT_ARM64_CACHE` (default ~/.cache/edgekit/arm64), and each folder there is named after what went into it. By hand:

    python tests/arm64/machine.py --cpu cortex-a72 -- -m edgekit doctor
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]
Cpu = Literal["cortex-a72", "cortex-a76"]

EMULATOR = "qemu-aarch64-static"
DEBIAN_PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libssl3",
    "libexpat1",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libcrypt1",
    "libgomp1",
)
# Newer ones crash in this emulator, not on the chips (seen with onnxruntime 1.28.0 and ai-edge-litert 2.3.0).
CONSTRAINTS = ("onnxruntime==1.25.1", "ai-edge-litert==2.0.3")
EXTRAS = "onnx,litert"
# Of the extra `split`, what has aarch64 wheels. pip would judge its markers by this machine, not by that one.
CODEC_WHEELS = ("zstandard>=0.22", "google-crc32c>=1.5")
STALE_SECONDS = 7 * 24 * 3600


class MachineUnavailableError(Exception):
    """The emulated machine cannot be had here; the message says why and how to get it."""


def _load_install_size() -> ModuleType:
    path = REPOSITORY / "samples" / "benchmarks" / "install_size.py"
    spec = importlib.util.spec_from_file_location("edgekit_install_size", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


install_size = _load_install_size()


def default_cache() -> Path:
    """Apart from EDGEKIT_CACHE, which the tests point at an empty folder: this one is to outlive them."""
    own = os.environ.get("EDGEKIT_ARM64_CACHE")
    return Path(own) if own else Path.home() / ".cache" / "edgekit" / "arm64"


class Machine:
    """`prepare` fills `cache`; `run` then starts the emulated Python. Safe for several processes at once."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or default_cache()
        self._emulator: Path | None = None
        self._root: Path | None = None
        self._site: tuple[Path, ...] = ()

    def prepare(self) -> None:
        """Raises MachineUnavailableError where apt, pip or the network do not give what is needed."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._root = self._entry("root", _digest(*DEBIAN_PACKAGES), self._unpack_debian)
            found = shutil.which(EMULATOR)
            self._emulator = Path(found) if found else self._root / "emulator" / EMULATOR
            own = self._entry("edgekit", source_digest(), _build_own)
            (wheel,) = own.glob("*.whl")
            needs = _digest(*_requirements(wheel), *CONSTRAINTS, *CODEC_WHEELS)
            site = self._entry("site", needs, lambda folder: _download_site(wheel, folder))
            self._site = (own, site)
            self._forget_stale()

    def run(
        self, arguments: list[str], cpu: Cpu = "cortex-a76", *, timeout_s: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The emulated interpreter with `arguments`, stdout and stderr captured; the return code is not checked.

        The working folder (default: the cache) is kept off sys.path, so that `edgekit` is the built wheel's.
        """
        assert self._emulator is not None and self._root is not None, "prepare() comes first"
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.cache),
            "LC_ALL": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "EDGEKIT_CACHE": str(self.cache / "parts"),
            "PYTHONPATH": os.pathsep.join(map(str, self._site)),
        }
        interpreter = self._root / "usr" / "bin" / "python3.11"
        command = [str(self._emulator), "-cpu", cpu, "-L", str(self._root), str(interpreter), "-P", *arguments]
        return subprocess.run(
            command,
            env=environment,
            cwd=cwd or self.cache,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def edgekit(
        self, arguments: list[str], cpu: Cpu = "cortex-a76", *, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The command line."""
        return self.run(["-m", "edgekit", *arguments], cpu, timeout_s=timeout_s)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.cache / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _entry(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """`cache/kind-key`, filled in a temporary folder and renamed, so that it is whole or not there."""
        entry = self.cache / f"{kind}-{key[:16]}"
        if entry.is_dir():
            os.utime(entry)
            return entry
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=f"{kind}-partial-") as folder:
            content = Path(folder) / "content"
            content.mkdir()
            try:
                fill(content)
            except FileNotFoundError as error:
                raise MachineUnavailableError(f"{error.filename} is not on this machine") from error
            except subprocess.CalledProcessError as error:
                said = " ".join((error.stderr or error.stdout or "").split()[-60:])
                raise MachineUnavailableError(f"{' '.join(map(str, error.cmd[:4]))} ... failed: {said}") from error
            content.rename(entry)
        os.utime(entry)  # unpacking sets the folder's time to the archive's
        return entry

    def _forget_stale(self) -> None:
        """Every change of the source makes a new entry; those unused for a week go."""
        for entry in self.cache.glob("*-*"):
            if entry.is_dir() and time.time() - entry.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(entry)

    def _unpack_debian(self, root: Path) -> None:
        for tool in ("apt-get", "dpkg", "dpkg-deb", "tar"):
            if shutil.which(tool) is None:
                raise MachineUnavailableError(
                    f"{tool} is missing: the emulated root is made of Debian 12 packages; run this on Debian 12 "
                    "(or in its container)"
                )
        host = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
        with tempfile.TemporaryDirectory(prefix="edgekit-apt-") as folder:
            packages = _apt_download(host.stdout.strip(), Path(folder))
            for package in packages:
                if package.name.startswith("qemu-user-static"):
                    _unpack_emulator(package, root / "emulator")
                else:
                    _command("dpkg-deb", "-x", str(package), str(root))


def _command(*words: str, cwd: Path | None = None) -> None:
    subprocess.run(words, cwd=cwd, check=True, capture_output=True, text=True)


def _apt_download(host: str, folder: Path) -> list[Path]:
    """The packages for arm64, and the emulator for `host`, through apt's own sources with lists of our own."""
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (folder / name).mkdir(parents=True)
    options = [
        "-oAPT::Architecture=arm64",
        f"-oAPT::Architectures=arm64,{host}",
        f"-oDir::State::Lists={folder / 'lists'}",
        f"-oDir::Cache={folder / 'cache'}",
        # root would otherwise hand the download to the user _apt, who may not write here.
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Retries=3",
    ]
    _command("apt-get", *options, "-q", "update")
    wanted = list(DEBIAN_PACKAGES)
    if shutil.which(EMULATOR) is None:
        wanted.append(f"qemu-user-static:{host}")
    _command("apt-get", *options, "-q", "download", *wanted, cwd=folder / "packages")
    return sorted((folder / "packages").glob("*.deb"))


def _unpack_emulator(package: Path, destination: Path) -> None:
    """One of the package's 30 emulators is wanted: 6 MB of 250."""
    destination.mkdir()
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
        subprocess.run(
            ["tar", "-x", "-C", str(destination), "--strip-components=3", f"./usr/bin/{EMULATOR}"],
            stdin=archive.stdout,
            check=True,
            capture_output=True,
            text=True,
        )


def _build_own(folder: Path) -> None:
    """The wheel of this repository and its content: what pip would put on the device."""
    wheel = install_size.build_wheel(folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def _download_site(wheel: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edgekit-wheels-") as temporary:
        wanted = [f"{wheel}[{EXTRAS}]", *CODEC_WHEELS]
        for download in install_size.download_wheels(wanted, Path(temporary), constraints=CONSTRAINTS):
            if download.name != wheel.name:
                with zipfile.ZipFile(download) as archive:
                    archive.extractall(folder)


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode("utf-8").splitlines()
    return [line for line in lines if line.startswith("Requires-Dist:")]


def source_digest() -> str:
    """Of every file that goes into the wheel."""
    digest = hashlib.sha256()
    for name in (*install_size.METADATA_FILES, *install_size.WINGS):
        path = REPOSITORY / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(REPOSITORY)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", choices=("cortex-a72", "cortex-a76"), default="cortex-a76")
    parser.add_argument("arguments", nargs="*", help="for the emulated interpreter; none: only prepare")
    options = parser.parse_args()
    machine = Machine()
    try:
        machine.prepare()
    except MachineUnavailableError as error:
        print(f"no emulated machine: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if not options.arguments:
        return 0
    result = machine.run(options.arguments, options.cpu)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
