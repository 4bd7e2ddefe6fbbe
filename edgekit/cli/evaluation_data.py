"""What `edgekit evaluate` reads: a folder of samples or a file of rows, and their classes where they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import DataError
from edgekit.runtimes.predict import Source
from edgekit.runtimes.preprocess import ARRAY_SUFFIXES, load_arrays, sample_files


@dataclass(frozen=True)
class Samples:
    """`classes`: the number of the true class of each source, None where the data do not tell them all."""

    sources: list[Source]
    classes: list[int] | None

    def spread(self, limit: int | None) -> Samples:
        """At most `limit` of them, evenly spaced, so that sorted class folders all come in."""
        count = len(self.sources)
        if limit is None or count <= limit:
            return self
        kept = [index * count // limit for index in range(limit)]
        classes = [self.classes[index] for index in kept] if self.classes is not None else None
        return Samples([self.sources[index] for index in kept], classes)


def read_samples(data: Path, inputs: Sequence[str], labels: Sequence[str], kind: str | None) -> Samples:
    """A folder of images or arrays (class folders tell the classes), a .npy or .npz file of rows (`labels` in it tells
    them), or a text file with a sample a line. `inputs`: the model's; `kind`: its preprocessing's. Raises DataError."""
    if not data.exists():
        raise DataError(f"no data at {data}", hint="--data takes a folder, a .npz, .npy or text file")
    if data.is_dir():
        files = _text_files(data) if kind == "text" else []
        files = files or sample_files(data)
        return Samples(list(files), folder_classes(data, files, labels))
    if data.suffix.lower() in ARRAY_SUFFIXES:
        return _rows(data, inputs, kind == "image")
    if kind == "text":
        return Samples(list(_lines(data)), None)
    return Samples([data], None)


def folder_classes(root: Path, files: Sequence[Path], labels: Sequence[str]) -> list[int] | None:
    """The class of each file, where all lie in folders named after labels or after class numbers."""
    folders = [file.relative_to(root).parts[0] if file.parent != root else "" for file in files]
    numbers = {_plain(name): number for number, label in enumerate(labels) for name in _names(label)}
    if labels and all(_plain(folder) in numbers for folder in folders):
        return [numbers[_plain(folder)] for folder in folders]
    if labels and all(folder.isdecimal() and int(folder) < len(labels) for folder in folders):
        return [int(folder) for folder in folders]
    return None


def _names(label: str) -> list[str]:
    """ImageNet's labels list synonyms: "tabby, tabby cat". Any of them names the class."""
    return [label, *label.split(",")]


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ").replace("-", " ")


def _text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.txt") if path.is_file())


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as text: {error}", hint="give UTF-8 text, a sample a line") from error
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{path} holds no text", hint="give a sample a line")
    return found


def _rows(path: Path, inputs: Sequence[str], pictures: bool) -> Samples:
    """Each row of the arrays is a sample; an array `labels`, where no input is called so, holds the classes."""
    loaded = load_arrays(path)
    arrays = dict(loaded) if isinstance(loaded, dict) else {inputs[0]: loaded}
    truth = arrays.pop("labels", None) if "labels" not in inputs else None
    if len(arrays) == 1 and len(inputs) == 1:
        arrays = dict(zip(inputs, arrays.values(), strict=True))
    if arrays.keys() != set(inputs):
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays))}, allowed {', '.join(inputs)} and labels",
            hint="save one array per input, rows first",
        )
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if truth is not None:
        counts.add(len(truth) if truth.ndim == 1 and truth.dtype.kind in "iu" else -1)
    if len(counts) != 1 or not counts - {0, -1}:
        raise DataError(
            f"{path} has arrays of different lengths or none", hint="one row and one integer label a sample"
        )
    sources: list[Source] = []
    for row in range(counts.pop()):
        parts = {name: array[row] for name, array in arrays.items()}
        if pictures and parts[inputs[0]].dtype == np.uint8:
            sources.append(parts[inputs[0]])
        else:
            sources.append({name: value[np.newaxis] for name, value in parts.items()})
    return Samples(sources, [int(label) for label in truth] if truth is not None else None)
