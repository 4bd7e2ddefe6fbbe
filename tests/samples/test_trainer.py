from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import DataError
from edgekit.zoo.fashion import FashionCnn
from samples.data import FashionMnist
from samples.training import trainer
from samples.training.trainer import Options, Trainer, accuracy, augment


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setattr(trainer, "VALIDATION_IMAGES", 16)
    return Options(tmp_path / "net.safetensors", epochs=2, batch=8, learning_rate=1e-3, weight_decay=0.01)


@pytest.fixture(scope="module")
def data() -> FashionMnist:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, 64)
    return FashionMnist(images, labels, images[:8], labels[:8])


def begin(data: FashionMnist, options: Options) -> Trainer:
    torch.manual_seed(options.seed)
    return Trainer(FashionCnn(), data, options)


@pytest.mark.parametrize("interrupted_after", [3, 6, 8])
def test_resuming_ends_at_the_weights_of_an_unbroken_run(
    data: FashionMnist, options: Options, tmp_path: Path, interrupted_after: int
) -> None:
    whole = begin(data, options)
    whole.run()
    again = replace(options, output=tmp_path / "again.safetensors")
    begin(data, again).run(interrupted_after)
    torch.manual_seed(999)
    resumed = Trainer(FashionCnn(), data, replace(again, resume=True))
    resumed.load_state()
    resumed.run()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value), name
    assert resumed.best == whole.best


def test_resuming_with_other_options_is_refused(data: FashionMnist, options: Options) -> None:
    begin(data, options).run(1)
    with pytest.raises(DataError, match="another learning_rate"):
        begin(data, replace(options, learning_rate=0.5)).load_state()


def test_nothing_to_resume_is_an_error(data: FashionMnist, options: Options) -> None:
    with pytest.raises(DataError, match="nothing to resume"):
        begin(data, options).load_state()


def test_training_stops_when_validation_no_longer_improves(data: FashionMnist, options: Options) -> None:
    stuck = begin(data, replace(options, epochs=10, patience=2))
    stuck.best = 1.0
    stuck.run()
    assert stuck.epoch == 2


def test_augmentation_only_mirrors_and_shifts() -> None:
    torch.manual_seed(0)
    image = torch.zeros(200, 1, 9, 9)
    image[:, :, 4, 5] = 1.0
    changed = augment(image, 1)
    assert changed.sum((1, 2, 3)).eq(1).all()
    rows, columns = changed[:, 0].flatten(1).argmax(1) // 9, changed[:, 0].flatten(1).argmax(1) % 9
    assert set(rows.tolist()) == {3, 4, 5}
    assert set(columns.tolist()) == {2, 3, 4, 5, 6}


def test_accuracy_counts_right_answers() -> None:
    class Mean(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            bright = image.mean((1, 2, 3)) > 0
            return nn.functional.one_hot(bright.long(), 2).float()

    images = torch.tensor([0, 255, 255, 0], dtype=torch.uint8)[:, None, None].expand(4, 28, 28)
    assert accuracy(Mean(), images, torch.tensor([0, 1, 0, 0])) == 0.75
