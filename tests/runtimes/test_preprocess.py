from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.bundle.manifest import Preprocess, TextPreprocess
from edgekit.errors import DataError, InputError, MissingExtraError
from edgekit.runtimes.preprocess import (
    DecodeOptions,
    TextEncoder,
    decode_image,
    image_files,
    image_tensor,
    load_arrays,
    make_feeder,
    normalize,
    resize_and_crop,
    sample_files,
)
from edgekit.tensors import TensorSpec

CONFIG = Preprocess(resize=16, crop=12, mean=(127.0, 120.0, 110.0), std=(128.0, 64.0, 32.0))
GREY = Preprocess(mode="L", resize=8, crop=8, mean=(0.0,), std=(255.0,))
IMAGE = TensorSpec("image", "float32", (1, 3, 12, 12))


def _photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth, as photographs are: noise of a twentieth of the size, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 5), max(2, width // 5), 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _resize_then_crop(image: Image.Image, config: Preprocess) -> np.ndarray:
    """The textbook order, whole image first."""
    width, height = image.size
    short = min(width, height)
    size = (
        config.resize if width == short else int(config.resize * width / height),
        config.resize if height == short else int(config.resize * height / width),
    )
    whole = image.resize(size, Image.Resampling[config.interpolation.upper()])
    left, top = round((size[0] - config.crop) / 2), round((size[1] - config.crop) / 2)
    return np.asarray(whole.crop((left, top, left + config.crop, top + config.crop)), np.int16)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (333, 517), (64, 64), (5, 9), (1, 16), (700, 91)])
@pytest.mark.parametrize(("resize", "crop"), [(16, 12), (64, 56), (28, 28), (33, 32)])
def test_shorter_side_is_resized_and_the_centre_cropped(interpolation, size, resize, crop):
    config = CONFIG.model_copy(update={"resize": resize, "crop": crop, "interpolation": interpolation})
    image = _photo(*size)
    np.testing.assert_array_equal(np.asarray(resize_and_crop(image, config)), _resize_then_crop(image, config))


@pytest.mark.parametrize("size", [(20, 400), (500, 30)])
def test_strips_give_what_resizing_all_of_them_gives(size):
    """Within one level of 255: the two ways round the positions of the samples differently."""
    config = CONFIG.model_copy(update={"resize": 16, "crop": 12})
    image = _photo(*size)
    got = np.asarray(resize_and_crop(image, config), np.int16)
    assert np.abs(got - _resize_then_crop(image, config)).max() <= 1


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_normalisation_matches_the_formula_channel_by_channel(layout):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    tensor = normalize(pixels, CONFIG.model_copy(update={"layout": layout}))
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    for channel in range(3):
        wanted = (pixels[:, :, channel].astype(np.float32) - CONFIG.mean[channel]) / CONFIG.std[channel]
        got = tensor[0, channel] if layout == "NCHW" else tensor[0, :, :, channel]
        np.testing.assert_array_equal(got, wanted.astype(np.float32))


def test_tall_strip_does_not_blow_up_memory(tmp_path):
    path = tmp_path / "strip.png"
    Image.new("RGB", (1, 60_000), "red").save(path)
    assert image_tensor(path, CONFIG.model_copy(update={"resize": 256, "crop": 224})).shape == (1, 3, 224, 224)


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("CMYK", "jpg"), ("P", "png"), ("1", "png"), ("LA", "png")])
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    _photo().convert(mode).save(path)
    image = decode_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png")
    assert decoded.getpixel((4, 4)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (10, 20, 30)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    pixels = np.asarray(decode_image(tmp_path / "a.png", "L"))
    np.testing.assert_array_equal(pixels, np.round(deep / 257.0).astype(np.uint8))


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).random((8, 8), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="8 or 16 bits"):
        decode_image(tmp_path / "a.tif")


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(tmp_path / "a.jpg").size == (10, 20)


def test_files_that_do_not_decode_are_data_errors_naming_the_file(tmp_path):
    path = tmp_path / "a.jpg"
    _photo(200, 200).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not an image", whole[: len(whole) // 2], whole[:30]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.jpg") as caught:
            decode_image(path)
        assert caught.value.hint
    with pytest.raises(DataError, match="cannot read"):
        decode_image(tmp_path / "missing.jpg")
    with pytest.raises(DataError, match="cannot read"):
        decode_image(tmp_path)


def test_flipped_bytes_decode_or_are_data_errors(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        _photo().save(tmp_path / f"good.{suffix}")
        data = (tmp_path / f"good.{suffix}").read_bytes()
        for _ in range(40):
            changed = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                changed[place] ^= int(rng.integers(1, 256))
            path = tmp_path / f"bad.{suffix}"
            path.write_bytes(bytes(changed))
            try:
                assert decode_image(path).mode == "RGB"
            except DataError:
                continue


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))))
    with pytest.raises(DataError, match=r"bomb\.png"):
        decode_image(path)


def test_folders_list_images_sorted_and_refuse_to_be_empty(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.png", "notes.txt", "d.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in image_files(tmp_path)] == ["a.JPG", "b.png", "c.png"]
    assert [path.name for path in sample_files(tmp_path)] == ["a.JPG", "b.png", "d.npy", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        image_files(tmp_path / "empty")
    with pytest.raises(DataError, match="no folder at"):
        image_files(tmp_path / "missing")


def test_arrays_are_read_and_objects_refused(tmp_path):
    array = np.arange(4.0)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", x=array, y=array + 1)
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.npy"), array)
    assert list(load_arrays(tmp_path / "b.npz")) == ["x", "y"]
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "d.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:90])
    (tmp_path / "e.npy").write_bytes(b"")
    for name in ("c.npy", "d.npz", "e.npy", "missing.npy"):
        with pytest.raises(DataError, match="holds no arrays"):
            load_arrays(tmp_path / name)


def test_feeder_takes_paths_pixels_tensors_and_mappings(tmp_path):
    feed = make_feeder(CONFIG, [IMAGE])
    photo = _photo()
    photo.save(tmp_path / "a.png")
    wanted = image_tensor(photo, CONFIG)
    np.save(tmp_path / "tensor.npy", wanted)
    np.save(tmp_path / "pixels.npy", np.asarray(photo))
    np.savez(tmp_path / "all.npz", image=wanted)
    sources = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        photo,
        np.asarray(photo),
        wanted,
        wanted.astype(np.float64),
        tmp_path / "tensor.npy",
        tmp_path / "pixels.npy",
        tmp_path / "all.npz",
        {"image": wanted},
    ]
    for source in sources:
        fed = feed(source)
        assert list(fed) == ["image"]
        assert fed["image"].dtype == np.float32
        np.testing.assert_array_equal(fed["image"], wanted)


def test_feeder_refuses_what_it_cannot_feed(tmp_path):
    feed = make_feeder(CONFIG, [IMAGE])
    with pytest.raises(DataError, match="got a int"):
        feed(3)
    with pytest.raises(DataError, match="allowed uint8"):
        feed(np.zeros((12, 12, 5), np.uint8))
    with pytest.raises(DataError, match="nothing about images"):
        make_feeder(None, [IMAGE])(tmp_path / "a.png")
    with pytest.raises(DataError, match="one array for the inputs"):
        make_feeder(None, [IMAGE, TensorSpec("other", "float32", (1,))])(np.zeros(1, np.float32))


def test_grey_config_makes_one_channel():
    assert image_tensor(np.asarray(_photo()), GREY).shape == (1, 1, 8, 8)
    assert image_tensor(np.zeros((9, 9, 1), np.uint8), GREY).shape == (1, 1, 8, 8)


def _tokenizer(folder: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers", reason="text needs the extra text")
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _text_specs(length: int | str) -> list[TensorSpec]:
    return [TensorSpec(name, "int64", (1, length)) for name in ("input_ids", "attention_mask")]


def test_text_becomes_ids_padded_to_a_fixed_length(tmp_path):
    encode = TextEncoder(TextPreprocess(max_length=8), _tokenizer(tmp_path), _text_specs(5))
    feeds = encode("a b z")
    assert feeds["input_ids"].tolist() == [[2, 3, 1, 0, 0]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert encode("a " * 20)["input_ids"].shape == (1, 5)


def test_text_of_dynamic_length_is_only_truncated(tmp_path):
    path = _tokenizer(tmp_path)
    feed = make_feeder(TextPreprocess(max_length=4), _text_specs("sequence"), path)
    assert feed("a b")["input_ids"].tolist() == [[2, 3]]
    assert feed("a b c a b c")["input_ids"].tolist() == [[2, 3, 4, 2]]
    (tmp_path / "text.txt").write_text("c b")
    assert feed(tmp_path / "text.txt")["input_ids"].tolist() == [[4, 3]]
    with pytest.raises(DataError, match="as text"):
        feed(tmp_path / "missing.txt")


def test_broken_tokenizers_strange_inputs_and_a_missing_extra_are_named(tmp_path, monkeypatch):
    path = _tokenizer(tmp_path)
    config = TextPreprocess(max_length=4)
    with pytest.raises(InputError, match="pixels"):
        TextEncoder(config, path, [TensorSpec("pixels", "int64", (1, 4))])("a")
    path.write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        TextEncoder(config, path, _text_specs(4))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"edgekit\[text\]"):
        TextEncoder(config, path, _text_specs(4))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_bytes_are_decoded_as_their_file_is(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    _photo(70, 50).save(path)
    assert decode_image(path.read_bytes()).tobytes() == decode_image(path).tobytes()


def test_only_the_formats_that_are_asked_for_are_decoded(tmp_path):
    path = tmp_path / "a.tif"
    _photo().save(path)
    assert decode_image(path.read_bytes()).size == (40, 30)
    with pytest.raises(DataError, match="bytes that are no JPEG, PNG"):
        decode_image(path.read_bytes(), options=DecodeOptions(formats=("JPEG", "PNG")))


def test_pixels_are_told_before_they_are_decoded(tmp_path):
    path = tmp_path / "a.jpg"
    _photo(70, 50).save(path)
    whole, told = path.read_bytes(), []
    with pytest.raises(DataError, match="does not decode"):
        decode_image(whole[: len(whole) // 2], options=DecodeOptions(admit=told.append))
    assert told == [3500]
    with pytest.raises(DataError, match="allowed 3,499"):
        decode_image(whole, options=DecodeOptions(max_pixels=3499, admit=told.append))
    assert told == [3500]


def test_a_draft_is_smaller_and_close(tmp_path):
    """A quarter of the size along each side, still more than three times what it is resized to. What then differs is
    below the grain of the file itself: JPEG at quality 90 rounds frequencies in steps of 3 levels and more."""
    path = tmp_path / "a.jpg"
    _photo(1600, 1200).save(path, quality=90)
    config = CONFIG.model_copy(update={"resize": 64, "crop": 56})
    whole, draft = decode_image(path), decode_image(path, options=DecodeOptions(draft=3 * 64))
    assert (whole.size, draft.size) == ((1600, 1200), (400, 300))
    pictures = [np.asarray(resize_and_crop(image, config), np.float32) for image in (whole, draft)]
    assert np.sqrt(np.mean((pictures[0] - pictures[1]) ** 2)) < 3


def test_a_picture_that_is_small_already_is_no_draft(tmp_path):
    path = tmp_path / "a.jpg"
    _photo(200, 150).save(path)
    assert decode_image(path, options=DecodeOptions(draft=100)).tobytes() == decode_image(path).tobytes()
