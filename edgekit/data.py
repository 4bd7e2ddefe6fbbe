"""Calibration data: what a user has (a folder, files, a DataLoader) becomes samples shaped like the model's inputs.

Every fourth item is held out: ranges are found on the others, quality is judged on these. The order is that of sorted
paths, or the iterable's own, so that the same data give the same bundle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.bundle.manifest import Preprocess, TextPreprocess
from edgekit.errors import DataError
from edgekit.model import Sample
from edgekit.runtimes.preprocess import ARRAY_SUFFIXES, TextEncoder, image_files, image_tensor, load_arrays
from edgekit.tensors import TensorSpec

logger = logging.getLogger("edgekit")

HOLD_OUT_EVERY = 4
NAMES_TOLD = 3
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Shape:
    """What samples have to look like, and how files are turned into them.

    `labels`: the names of the classes in order, to read class folders by.
    """

    example_inputs: Sample
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    preprocess: Preprocess | TextPreprocess | None = None
    tokenizer: Path | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Data:
    """`labels` are the classes of `held_out`, or empty where they are not known."""

    calibration: tuple[Sample, ...] = ()
    held_out: tuple[Sample, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Item:
    """One thing to calibrate on: `load` makes samples of it, each with its class or None."""

    name: str
    load: Callable[[], list[tuple[Sample, int | None]]]


def load_data(
    data: str | Path | Iterable[Any], shape: Shape, *, calibration_limit: int = 128, held_out_limit: int = 128
) -> Data:
    """`data`: a folder of images (class folders give labels) or of .npy/.npz files, one such file, a text file with
    a sentence a line, or an iterable of tensors, arrays, tuples or dicts, batched or not.

    Raises DataError for an empty set, a file that does not decode, wrong names, shapes or dtypes, NaN or infinity.
    """
    if isinstance(data, str | Path):
        items = _items_of_path(Path(data), shape)
        wanted: Iterable[_Item] = items
    else:
        total = calibration_limit + min(held_out_limit, -(-calibration_limit // (HOLD_OUT_EVERY - 1)))
        wanted = items = list(islice(_items_of_iterable(data, shape), total))
    if not items:
        raise DataError(f"the calibration set {_name(data)} is empty", hint="give some hundred typical inputs")
    held = [item for index, item in enumerate(wanted) if index % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1]
    if not held and len(items) > 1:
        held = [items[-1]]
    kept = {id(item) for item in held}
    calibration = _load(_spread([item for item in items if id(item) not in kept], calibration_limit))
    judged = _load(_spread(held, held_out_limit))
    classes = [label for _, label in judged[:held_out_limit]]
    return Data(
        tuple(sample for sample, _ in calibration[:calibration_limit]),
        tuple(sample for sample, _ in judged[:held_out_limit]),
        tuple(label for label in classes if label is not None) if None not in classes else (),
    )


def guess_preprocess(example_inputs: Sample) -> Preprocess | None:
    """The usual preparation for a model whose one input is a square image [N, 3 or 1, H, H]; None for any other.

    Shorter side to 8/7 of H, centre crop, mean and deviation of ImageNet for colour, [-1, 1] for grey: what
    torchvision's own models are trained with. A model trained otherwise has to say so.
    """
    if len(example_inputs) != 1:
        return None
    (value,) = example_inputs.values()
    if (
        value.dim() != 4
        or value.dtype != torch.float32
        or value.shape[1] not in (1, 3)
        or value.shape[2] != value.shape[3]
    ):
        return None
    size = value.shape[2]
    colour = value.shape[1] == 3
    return Preprocess(
        mode="RGB" if colour else "L",
        resize=round(size * 8 / 7) if colour else size,
        crop=size,
        interpolation="bilinear",
        mean=IMAGENET_MEAN if colour else (127.5,),
        std=IMAGENET_STD if colour else (127.5,),
    )


def _name(data: object) -> str:
    return str(data) if isinstance(data, str | Path) else f"of type {type(data).__name__}"


def _spread(items: Sequence[_Item], limit: int) -> list[_Item]:
    """At most `limit`, evenly spaced, so that sorted class folders all come in."""
    if len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def _load(items: Sequence[_Item]) -> list[tuple[Sample, int | None]]:
    loaded: list[tuple[Sample, int | None]] = []
    for item in items:
        for sample, label in item.load():
            for name, value in sample.items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise DataError(f"{item.name}: input {name!r} holds NaN or infinity", hint="leave it out")
            loaded.append((sample, label))
    return loaded


def _items_of_path(path: Path, shape: Shape) -> list[_Item]:
    if not path.exists():
        raise DataError(f"there is no calibration data at {path}", hint="check the path")
    if path.is_file():
        return _items_of_file(path, shape)
    arrays = sorted(file for file in path.rglob("*") if file.suffix in ARRAY_SUFFIXES)
    if arrays:
        return [item for file in arrays for item in _items_of_file(file, shape)]
    images = image_files(path)
    classes = _class_folders(path, images, shape.labels)
    return [_image_item(file, shape, classes.get(file)) for file in images]


def _items_of_file(path: Path, shape: Shape) -> list[_Item]:
    if path.suffix in ARRAY_SUFFIXES:
        return list(_items_of_arrays(path, shape))
    if path.suffix == ".txt":
        return _items_of_text(path, shape)
    return [_image_item(path, shape, None)]


def _class_folders(root: Path, images: Sequence[Path], labels: Sequence[str]) -> dict[Path, int]:
    """Image -> class, where every image lies in a folder named after a class of the model, or after its number."""
    folders = {image: image.relative_to(root).parts[0] for image in images if image.parent != root}
    if len(folders) != len(images):
        return {}
    numbers = {label: number for number, label in enumerate(labels)}
    if all(name in numbers for name in folders.values()):
        return {image: numbers[name] for image, name in folders.items()}
    if all(name.isdecimal() and (not labels or int(name) < len(labels)) for name in folders.values()):
        return {image: int(name) for image, name in folders.items()}
    names = sorted(set(folders.values()))
    if len(names) == len(labels):
        return {image: names.index(name) for image, name in folders.items()}
    reason = f"the model has {len(labels)} classes of other names" if labels else "the model names no classes"
    told = ", ".join(names[:NAMES_TOLD]) + (", ..." if len(names) > NAMES_TOLD else "")
    logger.warning("%s: the sub-folders %s are not used as labels: %s", root, told, reason)
    return {}


def _image_item(path: Path, shape: Shape, label: int | None) -> _Item:
    preprocess = shape.preprocess or guess_preprocess(shape.example_inputs)
    if not isinstance(preprocess, Preprocess) or len(shape.example_inputs) != 1:
        inputs = ", ".join(f"{name} {list(value.shape)}" for name, value in shape.example_inputs.items())
        raise DataError(
            f"{path.name} is an image, and the model takes {inputs}",
            hint="give .npz files with one array per input, or an iterable in Python",
        )
    (name,) = shape.example_inputs

    def load() -> list[tuple[Sample, int | None]]:
        value = torch.from_numpy(image_tensor(path, preprocess))
        return [(shaped({name: value}, shape, str(path)), label)]

    return _Item(str(path), load)


def _items_of_arrays(path: Path, shape: Shape) -> Iterator[_Item]:
    """The rows of .npy (one input) or .npz (an array per input; `labels`, where there is one, holds the classes)."""
    loaded = load_arrays(path)
    arrays = loaded if isinstance(loaded, dict) else None
    if arrays is None:
        if len(shape.example_inputs) != 1:
            raise DataError(
                f"{path.name} holds one array, and the model takes {', '.join(shape.example_inputs)}",
                hint="give a .npz file with one array per input",
            )
        arrays = {next(iter(shape.example_inputs)): np.asarray(loaded)}
    labels = arrays.pop("labels", None) if "labels" not in shape.example_inputs else None
    if list(arrays) == ["arr_0"] and len(shape.example_inputs) == 1:
        arrays = {next(iter(shape.example_inputs)): arrays["arr_0"]}
    sample = {name: torch.from_numpy(value) for name, value in arrays.items()}
    yield from _rows(sample, labels, shape, str(path))


def _items_of_text(path: Path, shape: Shape) -> list[_Item]:
    if shape.tokenizer is None:
        raise DataError(f"{path.name} is text, and the model has no tokenizer", hint="give .npz files with token ids")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    length = next(iter(shape.example_inputs.values())).shape[1]
    samples = tokenize(lines, shape.tokenizer, tuple(shape.example_inputs), length)
    return [_Item(f"{path}:{number}", _always(sample)) for number, sample in enumerate(samples, 1)]


def tokenize(lines: Sequence[str], tokenizer: Path, names: Sequence[str], length: int) -> list[Sample]:
    """A sample [1, length] int64 of each line, padded and cut. `names` of input_ids, attention_mask, token_type_ids."""
    unknown = [name for name in names if name not in ("input_ids", "attention_mask", "token_type_ids")]
    if unknown:
        raise DataError(f"no tokenizer makes the input {unknown[0]!r}", hint="give .npz files with an array per input")
    specs = [TensorSpec(name, "int64", (1, length)) for name in names]
    encode = TextEncoder(TextPreprocess(max_length=length), tokenizer, specs)
    return [{name: torch.from_numpy(value) for name, value in encode(line).items()} for line in lines]


def _always(sample: Sample, label: int | None = None) -> Callable[[], list[tuple[Sample, int | None]]]:
    return lambda: [(sample, label)]


def _items_of_iterable(data: Iterable[Any], shape: Shape) -> Iterator[_Item]:
    """Tensors, arrays, tuples in the order of the inputs (labels last, as a DataLoader has them), or dicts."""
    names = list(shape.example_inputs)
    for number, entry in enumerate(data):
        where = f"calibration item {number}"
        labels: Any = None
        if isinstance(entry, Mapping):
            sample = {name: _tensor(entry[name], where) for name in entry if name in names or name != "labels"}
            labels = entry.get("labels") if "labels" not in names else None
        else:
            values = list(entry) if isinstance(entry, tuple | list) else [entry]
            if len(values) == len(names) + 1:
                labels = values.pop()
            if len(values) != len(names):
                raise DataError(
                    f"{where} holds {len(values)} values, and the model takes {len(names)}: {', '.join(names)}"
                )
            sample = {name: _tensor(value, where) for name, value in zip(names, values, strict=True)}
        yield from _rows(sample, labels, shape, where)


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray | np.generic | int | float | list):
        return torch.as_tensor(value)
    raise DataError(f"{where} holds a {type(value).__name__}, allowed tensors and numpy arrays")


def _rows(sample: Sample, labels: Any, shape: Shape, where: str) -> Iterator[_Item]:
    """One item per row where the first dimension is a batch of more rows than the example has."""
    (first, example), *_ = shape.example_inputs.items()
    unbatched = shaped_names(sample, shape, where)
    value = unbatched[first]
    classes = [int(label) for label in np.asarray(labels).reshape(-1)] if _are_classes(labels) else None
    rows = value.shape[0] if value.dim() == example.dim() and example.dim() else 1
    if example.dim() == 0 or rows == example.shape[0] or example.shape[0] != 1:
        label = classes[0] if classes is not None and len(classes) == 1 else None
        yield _Item(where, _always(shaped(unbatched, shape, where), label))
        return
    for row in range(rows):
        part = {
            name: tensor[row : row + 1] if tensor.dim() and tensor.shape[0] == rows else tensor
            for name, tensor in unbatched.items()
        }
        label = classes[row] if classes is not None and len(classes) == rows else None
        name = f"{where}, row {row}"
        yield _Item(name, _always(shaped(part, shape, name), label))


def _are_classes(labels: Any) -> bool:
    return labels is not None and np.issubdtype(np.asarray(labels).dtype, np.integer)


def shaped_names(sample: Sample, shape: Shape, where: str) -> Sample:
    """The inputs in the model's order, each with a batch dimension. Raises DataError for other names."""
    names = list(shape.example_inputs)
    if set(sample) != set(names):
        raise DataError(f"{where} has the inputs {sorted(sample)}, allowed {sorted(names)}")
    return {
        name: sample[name].unsqueeze(0)
        if sample[name].dim() == example.dim() - 1 and example.shape[0] == 1
        else sample[name]
        for name, example in shape.example_inputs.items()
    }


def shaped(sample: Sample, shape: Shape, where: str) -> Sample:
    """The sample in the model's order and dtypes. Raises DataError where names, shapes or kinds of number differ."""
    result: Sample = {}
    for name, value in shaped_names(sample, shape, where).items():
        example = shape.example_inputs[name]
        loose = shape.dynamic.get(name, {})
        fits = value.dim() == example.dim() and all(
            got == want or dim in loose for dim, (got, want) in enumerate(zip(value.shape, example.shape, strict=True))
        )
        if not fits or value.is_floating_point() != example.is_floating_point():
            raise DataError(
                f"{where}: input {name!r} is {value.dtype} {list(value.shape)}, "
                f"allowed {example.dtype} {list(example.shape)}",
                hint="prepare calibration data exactly like the model's inputs",
            )
        result[name] = value.to(example.dtype).contiguous()
    return result
