"""Which caption tells what a picture shows: DINOv2 features, one linear map to sentence embeddings, a search.

The map is fitted in closed form: ridge regression (Hoerl and Kennedy, Technometrics 12(1), 1970) from the features of
pictures to MiniLM's embeddings of their captions. Pictures and captions are those of Debian's tuxpaint-stamps-default
(161 MB, fetched on the first call): a transparent cut-out, and beside it a text file that says what it is.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from edgekit.bundle.manifest import Postprocess
from edgekit.data import tokenize
from edgekit.digests import digest_module
from edgekit.model import Model, Sample, Source
from edgekit.runtimes.preprocess import normalize
from edgekit.zoo.dinov2 import PREPROCESS, SIDE, image_encoder
from edgekit.zoo.minilm import minilm
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph
from samples.data import fetch_debian, subject

PACKAGE, FOLDER = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
SMALLEST_SIDE = 90
TEMPERATURE = 0.05  # cosines become logits, whose softmax then has a winner
TRAINING_VIEWS, CALIBRATION_VIEWS, JUDGED_VIEWS = 3, 64, 64
EXPORT_VIEWS = 24  # of those judged: the export measures every rate of every way on them
REGULARIZATION = 0.01
SUBJECTS_APART = 5  # one subject in so many is never fitted on
BATCH = 16


@dataclass(frozen=True)
class Captioned:
    """`category`: the outermost folder. `caption`: the first line of the text file, in English."""

    path: Path
    category: str
    caption: str


class RetrievalHead(nn.Module):
    """Scores of known captions: the cosine of the mapped feature with each, over a temperature."""

    def __init__(self, weight: Tensor, bias: Tensor, captions: Tensor) -> None:
        """`weight` [D, E], `bias` [E] as `ridge` gives them, `captions` [C, E] of length 1."""
        super().__init__()
        self.map = nn.Linear(*weight.shape)
        self.captions = nn.Linear(captions.shape[1], len(captions), bias=False)
        with torch.no_grad():
            self.map.weight.copy_(weight.T)
            self.map.bias.copy_(bias)
            self.captions.weight.copy_(captions / TEMPERATURE)

    def forward(self, feature: Tensor) -> Tensor:
        """[N, D] -> [N, C]."""
        scores: Tensor = self.captions(functional.normalize(self.map(feature), dim=-1))
        return scores


class CaptionRetriever(nn.Module):
    """float32 [N, 3, 224, 224] -> scores [N, captions]."""

    def __init__(self, vision: nn.Module, head: RetrievalHead) -> None:
        super().__init__()
        self.vision, self.head = vision, head

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.vision(image))
        return scores


def ridge(features: Tensor, targets: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """Weight [D, E] and bias [E] that minimise |features W + b - targets|^2 + r |W|^2 over [N, D] and [N, E].

    r is `regularization` times the mean variance of a feature times N; the bias is free. Computed in float64.
    """
    x, y = features.double(), targets.double()
    middle, aim = x.mean(0), y.mean(0)
    centred = x - middle
    gram = centred.T @ centred
    strength = regularization * gram.diagonal().mean()
    weight = torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=gram.dtype), centred.T @ (y - aim))
    return weight.float(), (aim - middle @ weight).float()


def recall(scores: np.ndarray, truth: np.ndarray, count: int) -> float:
    """The share of rows of [N, C] whose `truth` [N] is among the `count` best; ties count against it."""
    right = scores[np.arange(len(scores)), truth][:, None]
    return float(((scores >= right).sum(1) <= count).mean())


def captioned_pictures() -> list[Captioned]:
    """Sorted by path. Letters, signs and coins, mirrored twins and thumbnails are left out. Raises DataError."""
    root = fetch_debian(PACKAGE) / FOLDER
    found = []
    for path in sorted(root.rglob("*.png")):
        text, category = path.with_suffix(".txt"), path.relative_to(root).parts[0]
        twin = path.is_symlink() or path.stem.endswith(("_mirror", "_flip"))
        if twin or category == "symbols" or not text.is_file():
            continue
        with Image.open(path) as image:
            if min(image.size) < SMALLEST_SIDE:
                continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and lines[0].strip():
            found.append(Captioned(path, category, lines[0].strip()))
    return found


def is_apart(picture: Captioned) -> bool:
    """Whether its subject (`cat1`, `cat2`) is kept from the fit."""
    return subject(picture.path) % SUBJECTS_APART == 0


def view(picture: Captioned, grounds: Sequence[Image.Image], generator: random.Random) -> Tensor:
    """float32 [1, 3, 224, 224]: the picture between 0.6 and 1.1 of the frame's side, somewhere in the frame, mirrored
    half of the time, on white, on a flat colour or on a crop of one of `grounds`."""
    with Image.open(picture.path) as file:
        stamp = file.convert("RGBA")
    scale = SIDE * generator.uniform(0.6, 1.1) / max(stamp.size)
    stamp = stamp.resize([max(1, round(side * scale)) for side in stamp.size], Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    kind = generator.random()
    if kind < 0.4:
        frame = Image.new("RGB", (SIDE, SIDE), "white")
    elif kind < 0.6:
        frame = Image.new("RGB", (SIDE, SIDE), tuple(generator.randrange(256) for _ in range(3)))
    else:
        frame = _crop(generator.choice(grounds), generator)
    place = [round(generator.uniform(0, 1) * (SIDE - side)) for side in stamp.size]
    frame.paste(stamp, (place[0], place[1]), stamp)
    return torch.from_numpy(normalize(np.asarray(frame), PREPROCESS))


def _crop(ground: Image.Image, generator: random.Random) -> Image.Image:
    side = min(ground.size) * generator.uniform(0.4, 1.0)
    left, top = (generator.uniform(0, length - side) for length in ground.size)
    return ground.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def grounds(names: Sequence[str]) -> list[Image.Image]:
    """Photographs of the scikit wheels, to lay cut-outs on."""
    opened = []
    for name in names:
        with Image.open(photograph(name)) as file:
            opened.append(file.convert("RGB"))
    return opened


def embed_captions(captions: Sequence[str]) -> Tensor:
    """float32 [C, 384] of length 1."""
    model = minilm()
    assert model.tokenizer is not None
    rows = tokenize(captions, model.tokenizer, tuple(model.example_inputs), length=48)
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        found.append(model.forward({name: torch.cat([row[name] for row in part]) for name in part[0]})["embedding"])
    return torch.cat(found)


def features_of(vision: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """[N, 384] of images [1, 3, 224, 224]."""
    with torch.inference_mode():
        parts = [vision(torch.cat(list(images[start : start + BATCH]))) for start in range(0, len(images), BATCH)]
    return torch.cat(parts).clone()


@dataclass(frozen=True)
class Gallery:
    """The pictures, their captions without repeats in order, and views that nothing was fitted on.

    `judged`: views of pictures that were fitted on, seen anew; `apart`: views of pictures whose subjects never were.
    """

    captions: tuple[str, ...]
    judged: tuple[tuple[Captioned, Tensor], ...]
    apart: tuple[tuple[Captioned, Tensor], ...]
    pictures: tuple[Captioned, ...]
    model: Model

    def truth(self, views: Sequence[tuple[Captioned, Tensor]]) -> np.ndarray:
        """int64 [N]: the index of each view's caption."""
        return np.array([self.captions.index(picture.caption) for picture, _ in views])


@functools.cache
def gallery() -> Gallery:
    """Fits the head (about a minute on two cores). Views that are judged lie on photographs that no training view
    lies on. Raises DataError or MissingExtraError where data or weights cannot be had."""
    pictures = captioned_pictures()
    captions = tuple(dict.fromkeys(picture.caption for picture in pictures))
    embeddings = embed_captions(captions)
    vision = image_encoder()
    known = [picture for picture in pictures if not is_apart(picture)]
    generator = random.Random(0)
    seen, unseen = grounds(CALIBRATION), grounds(HELD_OUT)
    training = [(picture, view(picture, seen, generator)) for picture in known for _ in range(TRAINING_VIEWS)]
    targets = torch.stack([embeddings[captions.index(picture.caption)] for picture, _ in training])
    weight, bias = ridge(features_of(vision, [image for _, image in training]), targets, REGULARIZATION)
    module = CaptionRetriever(vision, RetrievalHead(weight, bias, embeddings)).eval()
    chosen = generator.sample(known, JUDGED_VIEWS)
    judged = tuple((picture, view(picture, unseen, generator)) for picture in chosen)
    apart = tuple((picture, view(picture, unseen, generator)) for picture in pictures if is_apart(picture))
    calibration: tuple[Sample, ...] = tuple(
        {"image": image} for _, image in generator.sample(training, CALIBRATION_VIEWS)
    )
    model = Model(
        name="captions",
        module=module,
        example_inputs=dict(calibration[0]),
        output_names=("scores",),
        task="caption-retrieval",
        dynamic={"image": {0: "batch"}},
        calibration=calibration,
        held_out=tuple({"image": image} for _, image in judged[:EXPORT_VIEWS]),
        labels=tuple(captions.index(picture.caption) for picture, _ in judged[:EXPORT_VIEWS]),
        preprocess=PREPROCESS,
        postprocess=Postprocess(kind="classification", output="scores", labels=captions),
        source=Source("callable", "samples.captions:caption_retriever", digest_module(module)),
    )
    return Gallery(captions, judged, apart, tuple(pictures), model)


def caption_retriever() -> Model:
    """`image` float32 [batch, 3, 224, 224] -> `scores` [batch, captions], as `edgekit export` takes it."""
    return gallery().model
