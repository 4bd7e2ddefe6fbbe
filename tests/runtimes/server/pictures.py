"""Small pictures of every kind that a request may bring, and how they are prepared."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from edgekit.bundle.manifest import Preprocess

SIDE = 24
CONFIG = Preprocess(resize=28, crop=SIDE, mean=(127.0, 120.0, 110.0), std=(58.4, 57.1, 57.4))


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 5), max(2, width // 5), 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **settings)
    return stream.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(50, 30), "JPEG", exif=exif)


def _deep() -> bytes:
    return encoded(Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)), "PNG")


def _moving(format: str) -> bytes:
    return encoded(photo(40, 30), format, save_all=True, append_images=[photo(40, 30, seed) for seed in (1, 2)])


KINDS = {
    "jpeg": encoded(photo(90, 61), "JPEG"),
    "png": encoded(photo(31, 77), "PNG"),
    "webp": encoded(photo(64, 64), "WEBP"),
    "bmp": encoded(photo(33, 29), "BMP"),
    "turned": _turned(),
    "cmyk": encoded(photo(40, 40, mode="CMYK"), "JPEG"),
    "grey": encoded(photo(40, 40, mode="L"), "PNG"),
    "palette": encoded(photo(40, 40, mode="P"), "PNG"),
    "transparent": encoded(photo(40, 40, mode="RGBA"), "PNG"),
    "16 bits": _deep(),
    "progressive": encoded(photo(80, 60), "JPEG", progressive=True),
    "strip": encoded(photo(8, 400), "PNG"),
    "animated gif": _moving("GIF"),
    "animated png": _moving("PNG"),
    "animated webp": _moving("WEBP"),
}
