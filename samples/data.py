"""Real data for the samples and benchmarks, taken from Debian packages without root privilege.

`apt-get download` fetches a package, `dpkg-deb -x` unpacks it into a cache ($EDGEKIT_CACHE, ~/.cache/edgekit).
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import DataError

FASHION_MNIST = "dataset-fashion-mnist"


def cache_dir() -> Path:
    return Path(os.environ.get("EDGEKIT_CACHE") or Path.home() / ".cache" / "edgekit") / "data"


def fetch_debian(package: str, directory: Path | None = None) -> Path:
    """The folder that `package` is unpacked in; fetched on the first call only.

    Raises DataError where apt is not there or does not know the package.
    """
    target = (directory or cache_dir()) / package
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(
                f"{package} is a Debian package, and {tool} is not on this machine",
                hint=f"on Debian or Ubuntu it comes by itself; elsewhere unpack {package}_*.deb into {target}",
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{package}-") as scratch:
        _run(["apt-get", "download", package], Path(scratch), package)
        (archive,) = Path(scratch).glob("*.deb")
        _run(["dpkg-deb", "-x", str(archive), "content"], Path(scratch), package)
        # A rename is atomic: a fetch that was interrupted leaves nothing that looks complete.
        (Path(scratch) / "content").rename(target)
    return target


def _run(command: list[str], directory: Path, package: str) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DataError(
            f"{' '.join(command[:2])} failed for {package}: {reason[-1]}",
            hint="`apt-get update` renews the package lists; the network must reach a Debian mirror",
        )


@dataclass(frozen=True)
class FashionMnist:
    """uint8 images [N, 28, 28] and their classes int64 [N]."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def fashion_mnist() -> FashionMnist:
    """60,000 training and 10,000 test images. Raises DataError where the package cannot be had."""
    folder = fetch_debian(FASHION_MNIST) / "usr/share/datasets/fashion-mnist"
    return FashionMnist(
        _idx(folder / "train-images-idx3-ubyte.gz"),
        _idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int64),
        _idx(folder / "t10k-images-idx3-ubyte.gz"),
        _idx(folder / "t10k-labels-idx1-ubyte.gz").astype(np.int64),
    )


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: 0, 0, 8 (uint8), rank, then the big-endian int32 shape."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path.name} is not an IDX file of bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
