"""A model's input picture as a picture: normalised floats back to 8-bit pixels, then lossless or JPEG.

This is the peer that features are measured against. The encoders are Pillow's libraries: their bytes, and JPEG's
decoded pixels, are those of their versions.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.tables import array, read_tables, setting, write_tables

KIND = "image"
QUALITIES = (None, 95, 90, 75, 50, 30)  # of each rate; None is lossless
MAX_SIDE = 16383  # WebP's
_LENGTH_BYTES = 4


def fit_image_tables(mean: Sequence[float], std: Sequence[float], layout: str = "NCHW") -> bytes:
    """`mean` and `std` of each channel in the units of 0..255 pixels, as the manifest's Preprocess has them."""
    arrays = {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}
    return write_tables(KIND, {"layout": layout}, arrays)


class ImageCodec(Codec):
    """One float32 feature [B, 3 or 1, H, W], or channels last. Rates: lossless, then JPEG 95, 90, 75, 50, 30."""

    def _load(self, tables: bytes | None) -> None:
        settings, arrays = read_tables(tables, KIND)
        if len(self.features) != 1 or self.features[0].dtype != "float32" or len(self.features[0].shape) != 4:
            raise CodecError("an image codec carries one float32 feature of four dimensions")
        if not 1 <= self.rates <= len(QUALITIES):
            raise CodecError(f"{self.rates} rates, allowed 1 to {len(QUALITIES)}")
        layout = setting(settings, "layout", str, 4, 4)
        if layout not in ("NCHW", "NHWC"):
            raise CodecError(f"layout {layout!r}, allowed 'NCHW' or 'NHWC'")
        self.channels_first = layout == "NCHW"
        channels = self.features[0].shape[1 if self.channels_first else 3]
        if channels not in (1, 3):
            raise CodecError(f"{channels} channels, allowed 1 or 3")
        self.channels = int(channels)
        self.mean = array(arrays, "mean", "<f4", (self.channels,))
        self.std = array(arrays, "std", "<f4", (self.channels,))
        if not (self.std > 0).all():
            raise CodecError(f"std {self.std.tolist()}, allowed above zero")

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        feature = arrays[0]
        if not np.isfinite(feature).all():
            raise CodecError("an image that is not finite")
        images = feature.transpose(0, 2, 3, 1) if self.channels_first else feature
        if not (1 <= images.shape[1] <= MAX_SIDE and 1 <= images.shape[2] <= MAX_SIDE):
            raise CodecError(f"an image of {images.shape[1]} x {images.shape[2]}, allowed 1 to {MAX_SIDE} a side")
        with np.errstate(over="ignore"):
            pixels = np.clip(np.rint(images * self.std + self.mean), 0, 255).astype(np.uint8)
        files = [self._write(image, QUALITIES[rate]) for image in pixels]
        return b"".join(len(file).to_bytes(_LENGTH_BYTES, "little") + file for file in files)

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        shape = shapes[0] if not self.channels_first else tuple(shapes[0][at] for at in (0, 2, 3, 1))
        pixels, at = np.empty(shape, np.uint8), 0
        if len(payload) < shape[0] * _LENGTH_BYTES:
            raise CodecError(f"{len(payload)} bytes, too few for {shape[0]} images")
        for index in range(shape[0]):
            end = at + _LENGTH_BYTES + int.from_bytes(payload[at : at + _LENGTH_BYTES], "little")
            if end > len(payload):
                raise CodecError(f"image {index} ends after {len(payload)} bytes")
            pixels[index] = self._read(payload[at + _LENGTH_BYTES : end], shape[1:], QUALITIES[rate])
            at = end
        if at != len(payload):
            raise CodecError(f"{len(payload) - at} bytes follow the images, allowed none")
        images = (pixels.astype(np.float32) - self.mean) / self.std
        return [np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self.channels_first else images]

    def _write(self, image: np.ndarray, quality: int | None) -> bytes:
        """uint8 [H, W, 3 or 1]."""
        file = io.BytesIO()
        options: dict[str, Any] = {"optimize": True} if quality is None else {"quality": quality, "optimize": True}
        if quality is None and self.channels == 3:
            options = {"lossless": True}
        try:
            Image.fromarray(image if self.channels == 3 else image[..., 0]).save(file, self._format(quality), **options)
        except (OSError, ValueError, KeyError) as error:
            raise CodecError(f"the image cannot be written: {error}") from error
        return file.getvalue()

    def _format(self, quality: int | None) -> str:
        """WebP beats PNG on colour, and has no grey."""
        return "JPEG" if quality is not None else "WEBP" if self.channels == 3 else "PNG"

    def _read(self, file: bytes, shape: tuple[int, ...], quality: int | None) -> np.ndarray:
        """uint8 of `shape` [H, W, 3 or 1]; the header's size is compared before anything is decoded."""
        try:
            with Image.open(io.BytesIO(file), formats=(self._format(quality),)) as image:
                wanted = (shape[1], shape[0]), "RGB" if self.channels == 3 else "L"
                if (image.size, image.mode) != wanted or getattr(image, "n_frames", 1) != 1:
                    raise CodecError(f"an image of {image.size} {image.mode}, allowed {wanted[0]} {wanted[1]}")
                return np.asarray(image).reshape(shape)
        except CodecError:
            raise
        except Exception as error:
            # Pillow's decoders raise a dozen types for damaged files, from SyntaxError to struct.error.
            raise CodecError(f"a damaged image: {error}") from error
