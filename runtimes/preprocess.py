"""A sample as a user has it (image file, array file, text) -> input tensors, as the manifest's data say. No torch.

The build side calibrates through the same functions, so that the numbers agree.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgekit.bundle.manifest import Preprocess, TextPreprocess
from edgekit.errors import DataError, InputError, MissingExtraError
from edgekit.tensors import DTYPES, TensorSpec

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
MAX_PIXELS = 100_000_000
MAX_ASPECT = 16

_OPENING = threading.Lock()

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def image_files(folder: str | Path) -> list[Path]:
    """Every image below `folder`, sorted by path. Raises DataError where there is none."""
    return _files(Path(folder), IMAGE_SUFFIXES, "images")


def sample_files(folder: str | Path) -> list[Path]:
    """Every image and array file below `folder`, sorted by path. Raises DataError where there is none."""
    return _files(Path(folder), IMAGE_SUFFIXES | ARRAY_SUFFIXES, "images or arrays")


def _files(folder: Path, suffixes: frozenset[str], what: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}", hint=f"give a folder with {what}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise DataError(f"no {what} in {folder}", hint=f"allowed are {', '.join(sorted(suffixes))}")
    return found


@dataclass(frozen=True)
class DecodeOptions:
    """`formats`: of Pillow, None takes all that it knows. `admit`: told the number of pixels before they are decoded,
    and may wait, so that the caller can bound what is decoded at once. `draft`: a JPEG is decoded at a half, a quarter
    or an eighth of its size where its shorter side keeps so many pixels: faster, and not the same picture."""

    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] | None = None
    admit: Callable[[int], None] | None = None
    draft: int | None = None


def decode_image(
    source: str | Path | bytes, mode: str = "RGB", options: DecodeOptions = DecodeOptions()
) -> Image.Image:
    """Upright 8-bit RGB or L of a file or of its bytes, whatever it holds: transparency is laid on white, 16 bits are
    scaled to 8, of several frames the first counts.

    Raises DataError for what does not decode, or has more than `max_pixels`.
    """
    path = None if isinstance(source, bytes) else Path(source)
    origin = "the image" if path is None else str(path)
    try:
        with _open(source, options.formats) as image:
            return _decode(image, mode, origin, options)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"cannot read {origin}: {error.strerror}", hint="check the path and its permissions") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{origin} has more pixels than {options.max_pixels:,}", hint="scale it down") from error
    except UnidentifiedImageError as error:
        wanted = "a JPEG, PNG or WebP file" if options.formats is None else ", ".join(options.formats)
        if isinstance(source, bytes):
            raise DataError(
                f"{len(source)} bytes that are no {wanted}", hint="send the bytes of the file as they are"
            ) from error
        raise DataError(f"{origin} is not an image", hint=f"give {wanted}, or remove it") from error
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, EOFError, ArithmeticError, MemoryError) as error:
        # Pillow's decoders raise all of these for damaged files.
        raise DataError(f"{origin} does not decode: {error}", hint="it is damaged: replace or remove it") from error


def _open(source: str | Path | bytes, formats: tuple[str, ...] | None) -> Image.Image:
    """Reads the header alone. The filters of warnings are the whole process's: one thread at a time changes them."""
    with _OPENING, warnings.catch_warnings():
        # MAX_PIXELS is the limit here; Pillow's own warning stands a little below it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def _decode(image: Image.Image, mode: str, origin: str, options: DecodeOptions) -> Image.Image:
    if image.width * image.height > options.max_pixels:
        raise DataError(
            f"{origin} has {image.width} x {image.height} pixels, allowed {options.max_pixels:,}", hint="scale it down"
        )
    if options.draft is not None and min(image.size) > options.draft:
        # Pillow takes the smallest scale whose sides are still as long as asked.
        share = options.draft / min(image.size)
        image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
    if options.admit is not None:
        options.admit(image.width * image.height)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return to_mode(image, mode, origin)


def to_mode(image: Image.Image, mode: str, origin: str = "the image") -> Image.Image:
    """`image` as 8-bit `mode`, RGB or L. Raises DataError for pixels that have no 8-bit meaning."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image, origin)
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image if image.mode == mode else image.convert(mode)


def _from_deep(image: Image.Image, origin: str) -> Image.Image:
    """16-bit grey to 8: 0..65535 -> 0..255."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{origin} has {image.mode} pixels from {values.min()} to {values.max()}, allowed 8 or 16 bits a channel",
            hint="convert it to PNG or JPEG, or give a .npy file with the input tensor itself",
        )
    return Image.fromarray(np.round(values / 257.0).astype(np.uint8), "L")


def resize_and_crop(image: Image.Image, config: Preprocess) -> Image.Image:
    """The shorter side to `resize`, then the centre `crop` x `crop`.

    Of a strip longer than 16 to 1 only what the crop shows is resampled, so that no shape of file asks for gigabytes.
    """
    width, height = image.size
    short = min(width, height)
    new_width = config.resize if width == short else int(config.resize * width / height)
    new_height = config.resize if height == short else int(config.resize * height / width)
    left, top = round((new_width - config.crop) / 2), round((new_height - config.crop) / 2)
    resampling = _FILTERS[config.interpolation]
    if max(width, height) <= MAX_ASPECT * short:
        whole = image.resize((new_width, new_height), resampling)
        return whole.crop((left, top, left + config.crop, top + config.crop))
    across, down = width / new_width, height / new_height
    box = (left * across, top * down, (left + config.crop) * across, (top + config.crop) * down)
    return image.resize((config.crop, config.crop), resampling, box=box)


def normalize(pixels: np.ndarray, config: Preprocess) -> np.ndarray:
    """[H, W, C] or [H, W] in 0..255 -> float32 [1, C, H, W] or [1, H, W, C]: (x - mean) / std per channel."""
    height, width = pixels.shape[:2]
    channels = len(config.mean)
    shape = (channels, height, width) if config.layout == "NCHW" else (height, width, channels)
    tensor = np.empty((1, *shape), np.float32)
    normalize_into(tensor[0], pixels, config)
    return tensor


def normalize_into(row: np.ndarray, pixels: np.ndarray, config: Preprocess) -> None:
    """`pixels` normalized into `row`, float32 [C, H, W] or [H, W, C]: one row of a batch.

    Plane by plane: with three channels innermost numpy has no long loop to vectorise (224 x 224 x 3 on x86-64, one
    thread, median of 300: 0.72 ms all at once, 0.06 ms so). Multiplying by 1 / std instead would round differently, and
    saves nothing.
    """
    planes = pixels.reshape(*pixels.shape[:2], -1)
    for channel, (mean, std) in enumerate(zip(config.mean, config.std, strict=True)):
        plane = row[channel] if config.layout == "NCHW" else row[:, :, channel]
        np.subtract(planes[:, :, channel], np.float32(mean), out=plane, dtype=np.float32)
        np.divide(plane, np.float32(std), out=plane)


def image_tensor(source: str | Path | Image.Image | np.ndarray, config: Preprocess) -> np.ndarray:
    """float32, [1, C, crop, crop] in `config.layout`. An array holds uint8 pixels, [H, W] or [H, W, 1, 3 or 4].

    Raises DataError.
    """
    if isinstance(source, np.ndarray):
        image = to_mode(_from_pixels(source), config.mode)
    elif isinstance(source, Image.Image):
        image = to_mode(ImageOps.exif_transpose(source), config.mode)
    else:
        image = decode_image(source, config.mode)
    return normalize(np.asarray(resize_and_crop(image, config)), config)


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    plain = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not plain or pixels.size == 0:
        raise DataError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, allowed uint8 [H, W], [H, W, 3] or [H, W, 4]",
            hint="give the input tensor itself in the input's own dtype and shape, or an image file",
        )
    return Image.fromarray(pixels)


def load_arrays(path: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    """A .npy file's array, or a .npz file's arrays by name. Raises DataError; pickled objects are never loaded."""
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, MemoryError) as error:
        raise DataError(
            f"{path} holds no arrays that can be read: {error}", hint="write it with numpy.save or numpy.savez"
        ) from error


class TextEncoder:
    """Text -> token ids through a Hugging Face tokenizer file (the extra `text`)."""

    def __init__(self, config: TextPreprocess, tokenizer: Path, inputs: Sequence[TensorSpec]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("tokenizers", "text", "turning text into tokens") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises bare Exception for files that are none
            raise DataError(f"{tokenizer.name} is not a tokenizer: {error}", hint="export the bundle again") from error
        self._inputs = tuple(inputs)
        fixed = {spec.shape[-1] for spec in inputs if spec.shape and isinstance(spec.shape[-1], int)}
        self._length = min([config.max_length, *(size for size in fixed if isinstance(size, int))])
        self._tokenizer.enable_truncation(max_length=self._length)
        self._tokenizer.no_padding()
        if fixed:
            pad = self._tokenizer.token_to_id("[PAD]") or 0
            self._tokenizer.enable_padding(length=max(size for size in fixed if isinstance(size, int)), pad_id=pad)

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """Each input as [1, tokens]: ids, attention mask and token types by the usual names. Raises InputError."""
        encoding = self._tokenizer.encode(text)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
            "position_ids": range(len(encoding.ids)),
        }
        feeds = {}
        for spec in self._inputs:
            if spec.name not in columns:
                raise InputError(
                    f"input {spec.name!r} does not come from text, allowed {', '.join(columns)}",
                    hint="give a .npz file with every input by name",
                )
            feeds[spec.name] = np.asarray([columns[spec.name]], DTYPES[spec.dtype])
        return feeds


Feeder = Callable[[Any], dict[str, np.ndarray]]


def make_feeder(
    config: Preprocess | TextPreprocess | None, inputs: Sequence[TensorSpec], tokenizer: Path | None = None
) -> Feeder:
    """What turns a path, an array, a mapping of arrays or a text into the feeds of a session with `inputs`."""
    encoder = TextEncoder(config, tokenizer, inputs) if isinstance(config, TextPreprocess) and tokenizer else None
    return partial(_feed, config=config if isinstance(config, Preprocess) else None, encoder=encoder, inputs=inputs)


def _feed(
    source: Any, *, config: Preprocess | None, encoder: TextEncoder | None, inputs: Sequence[TensorSpec]
) -> dict[str, np.ndarray]:
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, str) and encoder is not None and Path(source).suffix.lower() not in ARRAY_SUFFIXES:
        return encoder(source)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix.lower() in ARRAY_SUFFIXES:
            loaded = load_arrays(path)
            return loaded if isinstance(loaded, dict) else _feed_array(loaded, config, inputs)
        if encoder is not None:
            return encoder(_read_text(path))
    elif isinstance(source, np.ndarray):
        return _feed_array(source, config, inputs)
    elif not isinstance(source, Image.Image):
        raise DataError(f"got a {type(source).__name__}, allowed a path, text, numpy array or mapping of arrays")
    if config is None:
        raise DataError(
            f"this bundle says nothing about images, got {source}", hint="give a .npy or .npz file with the inputs"
        )
    return _feed_array(image_tensor(source, config), None, inputs)


def _feed_array(array: np.ndarray, config: Preprocess | None, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """The one input. An array that does not fit it but could be a picture is preprocessed as one."""
    if len(inputs) != 1:
        raise DataError(
            f"one array for the inputs {[spec.name for spec in inputs]}", hint="give a .npz file, or a mapping by name"
        )
    spec = inputs[0]
    if config is not None and array.dtype == np.uint8 and spec.mismatch(array) is not None:
        array = image_tensor(array, config)
    both_float = array.dtype.kind == "f" and DTYPES[spec.dtype].kind == "f"
    return {spec.name: array.astype(DTYPES[spec.dtype], copy=False) if both_float else array}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as text: {error}", hint="give a UTF-8 text file") from error
