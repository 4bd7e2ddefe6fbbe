from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.image import ImageCodec, fit_image_tables
from edgekit.tensors import TensorSpec

MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def make_codec(height: int | str = "h", width: int | str = "w", rates: int = 6) -> ImageCodec:
    spec = TensorSpec("image", "float32", ("batch", 3, height, width))
    return ImageCodec([spec], rates, fit_image_tables(MEAN, STD))


def framed(file: bytes) -> bytes:
    return len(file).to_bytes(4, "little") + file


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_every_pixel_value_comes_back_bit_for_bit_from_rate_0() -> None:
    pixels = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16).repeat(3, 1)
    mean, std = (np.array(value, np.float32).reshape(3, 1, 1) for value in (MEAN, STD))
    image = (pixels - mean) / std
    codec = make_codec()
    assert (codec.decode(codec.encode([image], 0), [image.shape], 0)[0] == image).all()


def test_values_beyond_black_and_white_are_clipped() -> None:
    image = np.full((1, 3, 4, 4), 1e30, np.float32)
    codec = make_codec()
    decoded = codec.decode(codec.encode([image], 0), [image.shape], 0)[0]
    assert np.allclose(decoded[0, 0], (255 - MEAN[0]) / STD[0])


def test_a_coarse_jpeg_of_a_smooth_picture_is_close() -> None:
    ramp = np.linspace(-1, 1, 64, dtype=np.float32)
    image = np.broadcast_to(ramp, (1, 3, 64, 64)).copy()
    codec = make_codec()
    decoded = codec.decode(codec.encode([image], 5), [image.shape], 5)[0]
    assert np.sqrt(np.square(decoded - image).mean()) < 0.1


@pytest.mark.parametrize(
    "file",
    [
        saved(Image.new("RGB", (9, 8)), "JPEG"),  # another size
        saved(Image.new("L", (8, 8)), "JPEG"),  # another mode
        saved(Image.new("RGB", (8, 8)), "PNG"),  # another format
        saved(Image.new("RGB", (12_000, 12_000)), "JPEG"),  # far more pixels than its bytes suggest
        saved(Image.new("RGB", (8, 8)), "JPEG")[:-60],
        b"",
        b"\xff\xd8\xff\xe0",
    ],
)
def test_other_pictures_than_the_one_expected_are_refused(file: bytes) -> None:
    with pytest.raises(CodecError):
        make_codec().decode(framed(file), [(1, 3, 8, 8)], 2)


def test_lengths_that_do_not_add_up_are_refused() -> None:
    image, codec = np.zeros((2, 3, 8, 8), np.float32), make_codec()
    payload = codec.encode([image], 1)
    for damaged in (payload[:3], payload[:-1], payload + b"\0", b"\xff" * 4 + payload[4:], payload[4:]):
        with pytest.raises(CodecError):
            codec.decode(damaged, [image.shape], 1)
    with pytest.raises(CodecError):
        codec.decode(payload, [(1 << 23, 3, 1, 0)], 1)


def test_sides_that_no_picture_has_are_refused() -> None:
    for shape in ((1, 3, 0, 4), (1, 3, 1, 20000)):
        with pytest.raises(CodecError, match="a side"):
            make_codec().encode([np.zeros(shape, np.float32)], 0)


def test_tables_that_do_not_fit_are_refused() -> None:
    spec = TensorSpec("image", "float32", ("batch", 3, 8, 8))
    for tables, rates in (
        (fit_image_tables(MEAN[:1], STD[:1]), 1),
        (fit_image_tables(MEAN, (1, 0, 1)), 1),
        (fit_image_tables(MEAN, STD, "CHWN"), 1),
        (fit_image_tables(MEAN, STD, "NHWC"), 1),
        (fit_image_tables(MEAN, STD), 7),
    ):
        with pytest.raises(CodecError):
            ImageCodec([spec], rates, tables)
