from __future__ import annotations

import pytest
import torch

from edgekit.errors import MissingExtraError
from edgekit.model import Model
from edgekit.runtimes.preprocess import image_tensor
from edgekit.zoo import packages
from edgekit.zoo.efficientnet import PREPROCESS, efficientnet_lite0, imagenet_labels
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph, views

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def model() -> Model:
    return efficientnet_lite0()


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("skimage/chelsea.png", {"tabby", "tiger cat", "Egyptian cat"}),
        ("skimage/coffee.png", {"espresso"}),
        ("skimage/camera.png", {"tripod"}),
        ("sklearn/flower.jpg", {"daisy"}),
        ("sklearn/china.jpg", {"palace"}),
    ],
)
def test_sees_what_the_photograph_shows(model: Model, name: str, allowed: set[str]) -> None:
    image = torch.from_numpy(image_tensor(photograph(name), PREPROCESS))
    logits = model.forward({"image": image})["logits"]
    assert model.postprocess is not None
    assert model.postprocess.labels[int(logits.argmax())] in allowed


def test_labels_are_the_thousand_classes_of_imagenet() -> None:
    labels = imagenet_labels()
    assert len(labels) == len(set(labels)) == 1000
    assert (labels[0], labels[285], labels[967], labels[999]) == ("tench", "Egyptian cat", "espresso", "toilet tissue")


def test_held_out_photographs_are_never_calibrated_on(model: Model) -> None:
    assert not set(CALIBRATION) & set(HELD_OUT)
    assert len(model.calibration) == 16 * len(CALIBRATION)
    assert len(model.held_out) == 16 * len(HELD_OUT)
    seen = {sample["image"].numpy().tobytes() for sample in model.calibration}
    assert not any(sample["image"].numpy().tobytes() in seen for sample in model.held_out)


def test_the_central_view_is_the_crop_that_the_bundle_describes() -> None:
    """A square of 0.875 of the shorter side: 224 of 256, up to the rounding of the crop to whole pixels."""
    path = photograph("skimage/astronaut.png")
    view, described = views(path, PREPROCESS, 1)[0], torch.from_numpy(image_tensor(path, PREPROCESS))
    assert torch.equal(view, described)


def test_batch_is_dynamic(model: Model) -> None:
    assert model.input_specs[0].shape == ("batch", 3, 224, 224)
    pair = torch.cat([model.held_out[0]["image"], model.held_out[20]["image"]])
    together = model.forward({"image": pair})["logits"]
    alone = model.forward(model.held_out[20])["logits"]
    # Other blocking of the same sums: some float32 roundings over at most 1280 terms.
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_same_weights_give_the_same_digest(model: Model) -> None:
    assert efficientnet_lite0().source == model.source


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgekit\[samples\]"):
        efficientnet_lite0()


def test_view_count_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="17"):
        views(photograph("skimage/coffee.png"), PREPROCESS, 17)
