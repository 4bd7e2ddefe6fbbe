from __future__ import annotations

import json
from importlib.resources import files

import pytest
import torch

from edgekit.model import Model
from edgekit.zoo.fashion import fashion_cnn, fashion_vit
from samples.data import FashionMnist
from samples.training.trainer import accuracy

LOADERS = {"fashion-cnn": (fashion_cnn, 0.90), "fashion-vit": (fashion_vit, 0.84)}


@pytest.fixture(scope="module", params=LOADERS)
def named(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, LOADERS[request.param][0]()


def test_accuracy_on_the_test_images_is_the_one_recorded(named: tuple[str, Model], fashion_data: FashionMnist) -> None:
    name, model = named
    record = json.loads(files("edgekit.zoo").joinpath(f"checkpoints/{name}.json").read_text(encoding="utf-8"))
    measured = accuracy(model.module, torch.from_numpy(fashion_data.test), torch.from_numpy(fashion_data.test_labels))
    # Another processor may round a near tie the other way: two pictures of 10,000.
    assert measured == pytest.approx(record["test_accuracy"], abs=2e-4)
    assert measured >= LOADERS[name][1]
    assert record["command"].startswith("python -m samples.training.train_fashion_")


def test_checkpoint_is_small_enough_to_commit(named: tuple[str, Model]) -> None:
    name, model = named
    with files("edgekit.zoo").joinpath(f"checkpoints/{name}.safetensors").open("rb") as file:
        assert len(file.read()) < 1_000_000
    assert 50_000 < sum(value.numel() for value in model.module.parameters()) < 240_000


def test_brings_labelled_images_to_judge_on(named: tuple[str, Model]) -> None:
    _, model = named
    assert len(model.calibration) == len(model.held_out) == len(model.labels) == 128
    images = torch.cat([sample["image"] for sample in model.held_out])
    predicted = model.forward({"image": images})["logits"].argmax(1)
    right = float((predicted == torch.tensor(model.labels)).float().mean())
    # 128 draws at an accuracy of 0.84: mean minus three standard deviations of 0.032.
    assert right > 0.74


def test_images_come_from_the_dataset(named: tuple[str, Model], fashion_data: FashionMnist) -> None:
    from edgekit.zoo.fashion import normalize

    _, model = named
    known = {image.tobytes() for image in normalize(torch.from_numpy(fashion_data.train)).numpy()}
    assert all(sample["image"].numpy()[0].tobytes() in known for sample in model.calibration)
