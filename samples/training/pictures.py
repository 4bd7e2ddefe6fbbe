"""Pictures to train bottlenecks on: those of Debian's packages, none of them held out, and random crops of them.

Cut-outs (stamps with transparency) are also laid on crops of other pictures. A picture that looks like one of the
held-out photographs, mirrored or not, is left out by its difference hash, and so is every stamp of their subjects.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgekit.errors import DataError
from edgekit.runtimes.preprocess import decode_image
from edgekit.zoo.photographs import photograph
from samples.data import fetch_debian, photographs, split_photographs, subject

PACKAGES = (
    "gnome-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "ukui-wallpapers",
    "palapeli-data",
)
OPENCV = "usr/share/doc/opencv-doc/examples/data"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
EXTRA = ("brick.png", "cell.png", "clock_motion.png", "horse.png", "moon.png", "retina.jpg", "motorcycle_right.png")
SMALLEST_FILE, SMALLEST_STAMP, SMALLEST_PICTURE, SIDE = 12_000, 90, 120, 448
ALIKE = 20  # of 256 bits of the difference hash


@dataclass(frozen=True)
class Picture:
    """`image` RGB, shorter side up to 448; `cutout` RGBA of the same size where the file is transparent."""

    name: str
    image: Image.Image
    cutout: Image.Image | None


def training_pictures() -> list[Picture]:
    """About 1,100. Raises DataError where one of the packages cannot be had."""
    calibration, held_out = split_photographs(photographs())
    files = [*calibration, *_stamps(set(calibration), held_out), *_activities()]
    for package in PACKAGES:
        files += [file for file in sorted(fetch_debian(package).rglob("*")) if _is_picture(file)]
    files += [
        file
        for file in sorted((fetch_debian("opencv-doc") / OPENCV).iterdir())
        if _is_picture(file) and not file.stem.startswith(("left", "right"))
    ]
    files += [photograph(f"skimage/{name}") for name in EXTRA]
    hashes = [difference_hash(decode_image(path)) for path in held_out]
    hashes += [difference_hash(decode_image(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)) for path in held_out]
    judged = np.stack(hashes)
    found = []
    for file in files:
        try:
            image = decode_image(file)
        except DataError:
            continue
        if (judged != difference_hash(image)).sum(1).min() > ALIKE:
            found.append(_picture(file, image))
    return found


def difference_hash(image: Image.Image) -> np.ndarray:
    """bool [256]: whether each of 16 x 16 places is brighter than its left neighbour."""
    small = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BILINEAR)).astype(int)
    return (small[:, 1:] > small[:, :-1]).ravel()


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file() and file.stat().st_size > SMALLEST_FILE


def _stamps(calibration: set[Path], held_out: list[Path]) -> list[Path]:
    """All stamps that share no subject with a held-out photograph, letters and signs left out."""
    root = fetch_debian("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    judged = {subject(path) for path in held_out}
    found = []
    for file in sorted(root.rglob("*.png")):
        if file in calibration or file in held_out or file.is_symlink() or subject(file) in judged:
            continue
        if file.stem.endswith(("_mirror", "_flip")) or "symbols" in file.parts:
            continue
        with Image.open(file) as image:
            if min(image.size) >= SMALLEST_STAMP:
                found.append(file)
    return found


def _activities() -> list[Path]:
    """The JPEG and WebP pictures inside GCompris' resource files, unpacked beside them.

    In Qt's resource format each file stands as its length, uint32 big-endian, and its bytes.
    """
    root = fetch_debian("gcompris-qt-data")
    target = root / "pictures"
    if target.is_dir():
        return sorted(target.iterdir())
    seen: set[int] = set()
    scratch = root / ".pictures"
    scratch.mkdir(exist_ok=True)
    for resource in sorted((root / "usr/share/gcompris-qt/rcc").rglob("*.rcc")):
        for data, suffix in _embedded(resource.read_bytes()):
            if zlib.crc32(data) not in seen:
                (scratch / f"{resource.stem}_{len(seen)}{suffix}").write_bytes(data)
                seen.add(zlib.crc32(data))
    scratch.rename(target)
    return sorted(target.iterdir())


def _embedded(content: bytes) -> Iterator[tuple[bytes, str]]:
    for signature, suffix in ((b"\xff\xd8\xff", ".jpg"), (b"RIFF", ".webp")):
        place = content.find(signature, 4)
        while place != -1:
            (length,) = struct.unpack(">I", content[place - 4 : place])
            data = content[place : place + length]
            if 4000 < length <= len(content) - place and _decodes(data):
                yield data, suffix
            place = content.find(signature, place + 3)


def _decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return min(image.size) >= SMALLEST_PICTURE
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False


def _picture(file: Path, image: Image.Image) -> Picture:
    cutout = None
    if "stamps" in file.parts:
        with Image.open(file) as raw:
            if raw.mode in ("RGBA", "LA", "P"):
                transparent = raw.convert("RGBA")
                cutout = transparent if np.asarray(transparent)[..., 3].min() < 10 else None
    scale = SIDE / min(image.size)
    if scale < 1:
        size = max(SIDE, round(image.width * scale)), max(SIDE, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        cutout = cutout and cutout.resize(size, Image.Resampling.LANCZOS)
    return Picture(str(file), image, cutout)


def random_crops(pictures: list[Picture], count: int, crop: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """`count` times (index of the picture, RGB crop): 45 % of whole pictures, 30 % of cut-outs on white, 25 % of
    cut-outs on a crop of another picture."""
    generator = random.Random(seed)
    whole = [index for index, picture in enumerate(pictures) if picture.cutout is None]
    cutouts = [index for index, picture in enumerate(pictures) if picture.cutout is not None]
    for _ in range(count):
        kind = generator.random()
        if kind < 0.45:
            index = generator.choice(whole)
            yield index, _crop(pictures[index].image, 0.3, crop, generator)
            continue
        index = generator.choice(cutouts)
        if kind < 0.75:
            yield index, _crop(pictures[index].image, 0.4, crop, generator)
            continue
        ground = _crop(pictures[generator.choice(whole)].image, 0.05, crop, generator)
        cutout = pictures[index].cutout
        assert cutout is not None
        above = _crop(cutout, 0.5, crop, generator)
        ground.paste(above.convert("RGB"), (0, 0), above.getchannel("A"))
        yield index, ground


def _crop(image: Image.Image, smallest: float, size: int, generator: random.Random) -> Image.Image:
    area = generator.uniform(smallest, 1.0)
    stretch = float(np.exp(generator.uniform(-0.15, 0.15)))
    side = min(image.size) * area**0.5
    width, height = min(image.width, side * stretch), min(image.height, side / stretch)
    left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    small = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else small
