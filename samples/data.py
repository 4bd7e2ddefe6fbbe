"""Real data for the samples and benchmarks, taken from Debian packages without root privilege.

`apt-get download` fetches a package, `dpkg-deb -x` unpacks it into a folder ($EDGEKIT_DATA, or ~/.cache/edgekit/data).
Sentences need no fetching: see sentences.py.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgekit.errors import DataError
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph

FASHION_MNIST = "dataset-fashion-mnist"


def cache_dir() -> Path:
    return Path(os.environ.get("EDGEKIT_DATA") or Path.home() / ".cache" / "edgekit" / "data")


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


# Photographs among the pictures of Debian's packages; the rest are drawings and renderings.
_WALLPAPERS = {
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers",
        (
            "Autumn/contents/images/2560x1600.jpg",
            "BytheWater/contents/images/2560x1600.jpg",
            "ColorfulCups/contents/images/2560x1600.jpg",
            "DarkestHour/contents/images/2560x1600.jpg",
            "EveningGlow/contents/images/2560x1600.jpg",
            "FallenLeaf/contents/images/2560x1600.jpg",
            "OneStandsOut/contents/images/2560x1600.jpg",
            "Path/contents/images/2560x1600.jpg",
        ),
    ),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate",
        (
            "abstract/Elephants.jpg",
            "nature/Aqua.jpg",
            "nature/Blinds.jpg",
            "nature/Dune.jpg",
            "nature/FreshFlower.jpg",
            "nature/Garden.jpg",
            "nature/GreenMeadow.jpg",
            "nature/LadyBird.jpg",
            "nature/RainDrops.jpg",
            "nature/Storm.jpg",
            "nature/TwoWings.jpg",
            "nature/Wood.jpg",
            "nature/YellowFlower.jpg",
        ),
    ),
    "visp-images-data": (
        "usr/share/visp-images-data/ViSP-images",
        ("Solvay/Solvay_conference_1927_Version2_2126x1463.jpg",),
    ),
}
_STAMPS = "tuxpaint-stamps-default"
_STAMP_FOLDERS = ("animals", "food", "household", "plants", "vehicles")
_STAMP_MINIMUM_SIDE = 150


def photographs() -> list[Path]:
    """Natural photographs: those of the scikit-image and scikit-learn wheels, of Debian's desktops, and Tux Paint's
    cut-out animals, food, plants, things and vehicles of 150 pixels and more. Sorted, without repeats.

    Raises DataError or MissingExtraError where one of the packages cannot be had.
    """
    found = [photograph(name) for name in (*CALIBRATION, *HELD_OUT)]
    for package, (folder, names) in _WALLPAPERS.items():
        root = fetch_debian(package) / folder
        found += [root / name for name in names]
    stamps = fetch_debian(_STAMPS) / "usr/share/tuxpaint/stamps"
    for folder in _STAMP_FOLDERS:
        found += [file for file in sorted((stamps / folder).rglob("*.png")) if _is_photograph(file)]
    return found


def _is_photograph(stamp: Path) -> bool:
    """Not a cartoon, not a recoloured or mirrored twin, and not a thumbnail."""
    if "cartoon" in stamp.parts or stamp.stem.endswith(("_mirror", "_flip")) or stamp.is_symlink():
        return False
    with Image.open(stamp) as image:
        return min(image.size) >= _STAMP_MINIMUM_SIDE


def split_photographs(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """(calibration, held out), by photograph and for good: about one in four is calibrated on, three are judged.

    The wheels' photographs keep the split of the sample efficientnet-lite0. Of the others the first letters of the
    name decide, so that pictures of the same thing (`cat1`, `cat2`) fall on the same side.
    """
    fixed = {photograph(name) for name in CALIBRATION}, {photograph(name) for name in HELD_OUT}
    calibration = [path for path in paths if path in fixed[0] or (path not in fixed[1] and subject(path) % 4 == 0)]
    chosen = set(calibration)
    return calibration, [path for path in paths if path not in chosen]


def subject(path: Path) -> int:
    """A number that all pictures of one subject share."""
    name = path.parent.parent.parent.name if path.parent.name == "images" else path.stem
    match = re.match(r"[A-Za-z]+", name)
    return zlib.crc32((match.group() if match else name).lower().encode())
