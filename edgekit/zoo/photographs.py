"""Natural photographs that come with the scikit-image and scikit-learn wheels, cut into inputs for an image model.

The split is by photograph and fixed: nothing that ranges are found on is ever seen again when quality is judged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgekit.bundle.manifest import Preprocess
from edgekit.runtimes.preprocess import decode_image, normalize
from edgekit.zoo.packages import package_folder

CALIBRATION = (
    "skimage/astronaut.png",
    "skimage/camera.png",
    "skimage/coins.png",
    "skimage/grass.png",
    "skimage/gravel.png",
    "skimage/hubble_deep_field.jpg",
    "skimage/motorcycle_left.png",
    "sklearn/china.jpg",
)
HELD_OUT = ("skimage/chelsea.png", "skimage/coffee.png", "skimage/rocket.jpg", "sklearn/flower.jpg")

# Each view is a square: its side as a fraction of the photograph's shorter side, and where its centre lies (0 to 1)
# in the room that is left.
_VIEWS = (
    (0.875, 0.5, 0.5),
    (1.0, 0.5, 0.5),
    (1.0, 0.2, 0.2),
    (0.8, 0.1, 0.1),
    (0.8, 0.9, 0.1),
    (0.8, 0.1, 0.9),
    (0.8, 0.9, 0.9),
    (0.65, 0.5, 0.5),
)


def photograph(name: str) -> Path:
    """The file of a photograph named as in CALIBRATION and HELD_OUT. Raises MissingExtraError."""
    package, _, file = name.partition("/")
    folder = "data" if package == "skimage" else "datasets/images"
    return package_folder(package, "the sample photographs") / folder / file


def views(path: Path, preprocess: Preprocess, count: int = 16) -> list[Tensor]:
    """`count` <= 16 tensors [1, 3, crop, crop]: eight squares of the photograph, then the same mirrored."""
    if not 1 <= count <= 2 * len(_VIEWS):
        raise ValueError(f"count {count}, allowed 1 to {2 * len(_VIEWS)}")
    image = decode_image(path, preprocess.mode)
    straight = [_square(image, preprocess, *view) for view in _VIEWS]
    mirrored = [view.flip(-1) for view in straight]
    return (straight + mirrored)[:count]


def _square(image: Image.Image, preprocess: Preprocess, side: float, across: float, down: float) -> Tensor:
    """float32 [1, C, crop, crop], normalised."""
    length = side * min(image.size)
    left, top = (image.width - length) * across, (image.height - length) * down
    resample = Image.Resampling[preprocess.interpolation.upper()]
    small = image.resize((preprocess.crop,) * 2, resample, box=(left, top, left + length, top + length))
    return torch.from_numpy(normalize(np.asarray(small), preprocess))
