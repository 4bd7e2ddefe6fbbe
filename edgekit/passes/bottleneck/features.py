"""Head features computed once, so that training never runs the frozen head: arrays of float16 in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgekit.bundle.manifest import Preprocess
from edgekit.data import Shape, guess_preprocess, load_data
from edgekit.errors import DataError
from edgekit.model import Model, Sample, flatten_outputs
from edgekit.passes.bottleneck.crossing import Crossing
from edgekit.progress import Progress, silent
from edgekit.runtimes.preprocess import ARRAY_SUFFIXES, decode_image, image_files, normalize

BATCH = 16
SMALLEST_AREA = 0.3  # of a picture, that a crop takes
MOST_ARRAYS = 100_000


@dataclass(frozen=True)
class FeatureSet:
    """`features` [N, ...]: what crosses, joined, float16 or float32, may lie on disk. `groups` int64 [N]: the picture
    that each comes from; no picture is both trained and validated on. `labels` int64 [N], where they are known.
    """

    features: np.ndarray
    groups: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def take(self, chosen: np.ndarray | Sequence[int]) -> Tensor:
        """float32 [n, ...]."""
        return torch.from_numpy(np.asarray(self.features[chosen], np.float32))

    def split(self, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Indices to train on and to validate on: every tenth picture, at least one where there are two."""
        ranks = np.unique(self.groups, return_inverse=True)[1]
        count = int(ranks.max()) + 1 if len(ranks) else 0
        held = ranks % every == every - 1 if count >= every else ranks == count - 1
        if count < 2:
            held = np.zeros(len(ranks), bool)
        return np.flatnonzero(~held), np.flatnonzero(held)


def compute_features(
    head: Model, tail: Model, source: Path | None, folder: Path | None, *, crops: int, seed: int, progress: Progress
) -> FeatureSet:
    """Of `crops` random crops of the pictures under `source`, half of them mirrored; of the arrays there as they are;
    without a source, of the calibration samples. `folder` keeps them, and an interrupted computation goes on there.

    Raises DataError for a source without usable data.
    """
    if source is None:
        features = Crossing.of(tail).features(tail.calibration).numpy()
        return FeatureSet(features, np.arange(len(features)))
    if not source.exists():
        raise DataError(f"there is no training data at {source}", hint="check the path")
    if source.is_dir() and not any(file.suffix in ARRAY_SUFFIXES for file in source.rglob("*")):
        return _of_pictures(head, tail, source, folder, crops, seed, progress)
    shape = Shape(head.example_inputs, head.dynamic, head.preprocess, head.tokenizer)
    data = load_data(source, shape, calibration_limit=MOST_ARRAYS, held_out_limit=0)
    features = np.concatenate([part.numpy() for part in _run(head, tail, data.calibration, progress)])
    return FeatureSet(features, np.arange(len(features)))


def _of_pictures(
    head: Model, tail: Model, source: Path, folder: Path | None, crops: int, seed: int, progress: Progress
) -> FeatureSet:
    preprocess = head.preprocess or guess_preprocess(head.example_inputs)
    if not isinstance(preprocess, Preprocess) or len(head.example_inputs) != 1:
        raise DataError(
            f"{source} holds pictures, and the model does not take one picture",
            hint="give .npz files with one array per input",
        )
    files = usable_pictures(image_files(source), preprocess)
    if not files:
        raise DataError(f"{source} holds no usable picture", hint="give a folder of JPEG, PNG or WebP files")
    each = max(1, crops // len(files))
    shape = tuple(Crossing.of(tail).join(tuple(tail.example_inputs.values())).shape[1:])
    groups = np.repeat(np.arange(len(files)), each)
    identity = _identity(head, tail, [str(file.relative_to(source)) for file in files], each, seed)
    store = _Store(folder, identity, (len(groups), *shape))
    name = next(iter(head.example_inputs))
    for index in range(store.done, len(files)):
        progress("compute features", index, len(files))
        generator = np.random.default_rng([seed, index])
        image = decode_image(files[index], preprocess.mode)
        inputs = [{name: random_crop(image, preprocess, generator)} for _ in range(each)]
        store.write(index, each, np.concatenate([part.numpy() for part in _run(head, tail, inputs, silent)]))
    progress("compute features", len(files), len(files))
    return FeatureSet(store.finish(len(files)), groups, class_labels(tail, source, files, each))


def usable_pictures(files: Sequence[Path], preprocess: Preprocess) -> list[Path]:
    """Those that decode."""
    usable = []
    for file in files:
        try:
            decode_image(file, preprocess.mode)
        except DataError:
            continue
        usable.append(file)
    return usable


def class_labels(tail: Model, source: Path, files: Sequence[Path], each: int) -> np.ndarray | None:
    """From folders named after the model's classes or their numbers; None where the pictures do not lie in such."""
    names = list(tail.postprocess.labels) if tail.postprocess is not None else []
    numbers = {name: number for number, name in enumerate(names)}
    folders = [file.relative_to(source).parts[0] if file.parent != source else "" for file in files]
    if all(folder in numbers for folder in folders):
        found = [numbers[folder] for folder in folders]
    elif all(folder.isdecimal() for folder in folders):
        found = [int(folder) for folder in folders]
    else:
        return None
    return np.repeat(np.asarray(found, np.int64), each)


def random_crop(image: Image.Image, preprocess: Preprocess, generator: np.random.Generator) -> Tensor:
    """float32 [1, C, crop, crop]: an area of 30 % and more, sides within 7:6, mirrored half of the time."""
    stretch = np.exp(generator.uniform(-0.15, 0.15))
    side = min(image.size) * np.sqrt(generator.uniform(SMALLEST_AREA, 1.0))
    width, height = min(image.width, side * stretch), min(image.height, side / stretch)
    left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
    resample = Image.Resampling[preprocess.interpolation.upper()]
    small = image.resize((preprocess.crop,) * 2, resample, box=(left, top, left + width, top + height))
    if generator.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(normalize(np.asarray(small), preprocess))


def _run(head: Model, tail: Model, samples: Sequence[Sample], progress: Progress) -> Iterator[Tensor]:
    """Joined features of samples, in batches where the batch is dynamic."""
    crossing = Crossing.of(tail)
    first = next(iter(head.example_inputs))
    size = BATCH if 0 in head.dynamic.get(first, {}) else 1
    for start in range(0, len(samples), size):
        progress("compute features", start, len(samples))
        part = samples[start : start + size]
        joined = [torch.cat([sample[name] for sample in part]) for name in head.example_inputs]
        with torch.no_grad():
            values = crossing.join(flatten_outputs(head.graph(*joined)))
        if not torch.isfinite(values).all():
            raise DataError("the head gives NaN or infinity on training data", hint="leave such pictures out")
        yield values


def _identity(head: Model, tail: Model, files: list[str], each: int, seed: int) -> str:
    facts = [head.source.digest, head.name, list(tail.example_inputs), files, each, seed]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _Store:
    """features.npy and features.json in a folder, or memory where there is none. `done` counts whole pictures."""

    def __init__(self, folder: Path | None, identity: str, shape: tuple[int, ...]) -> None:
        self.folder, self.identity, self.done = folder, identity, 0
        if folder is None:
            self.array = np.zeros(shape, np.float16)
            return
        folder.mkdir(parents=True, exist_ok=True)
        path, facts = folder / "features.npy", folder / "features.json"
        if path.exists() and facts.exists():
            known = json.loads(facts.read_text(encoding="utf-8"))
            if known["identity"] == identity:
                self.array, self.done = np.lib.format.open_memmap(path, "r+"), known["done"]
                return
        self.array = np.lib.format.open_memmap(path, "w+", np.float16, shape)

    def write(self, index: int, each: int, values: np.ndarray) -> None:
        limit = np.finfo(np.float16).max
        self.array[index * each : (index + 1) * each] = np.clip(values, -limit, limit)
        if index % 32 == 31:
            self.finish(index + 1)

    def finish(self, done: int) -> np.ndarray:
        if self.folder is not None and isinstance(self.array, np.memmap):
            self.array.flush()
            facts = json.dumps({"identity": self.identity, "done": done})
            scratch = self.folder / "features.json.partial"
            scratch.write_text(facts, encoding="utf-8")
            scratch.replace(self.folder / "features.json")
        return self.array
