from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.model import Model
from edgekit.zoo.packages import package_folder
from edgekit.zoo.silero import RATE_HZ, babble, run_through, silero_vad

pytest.importorskip("silero_vad")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> Model:
    return silero_vad()


def probabilities(model: Model, sound: np.ndarray) -> np.ndarray:
    return np.array([model.module(*sample.values())[0].item() for sample in run_through(model, sound)])


def test_a_voice_is_speech_and_silence_is_not(model: Model) -> None:
    found = probabilities(model, babble(seed=1, seconds=3.0))
    assert found.max() > 0.9
    assert found.min() < 0.1
    assert probabilities(model, np.zeros(RATE_HZ, np.float32))[8:].max() < 0.1


def test_agrees_with_the_file_for_every_rate(model: Model) -> None:
    general = onnxruntime.InferenceSession(str(package_folder("silero_vad", "this test") / "data/silero_vad.onnx"))
    for sample in model.held_out[5:15]:
        feeds = {name: value.numpy() for name, value in sample.items()} | {"sr": np.array(RATE_HZ)}
        # Two exports of one network: some float32 roundings in a sigmoid.
        assert general.run(None, feeds)[0].item() == pytest.approx(model.module(*sample.values())[0].item(), abs=1e-5)


def test_calibration_carries_states_that_the_model_reached(model: Model) -> None:
    assert len(model.calibration) == 128
    assert any(sample["state"].abs().max() > 0 for sample in model.calibration)
    assert model.source.kind == "sample"


def test_recordings_side_by_side_are_heard_as_each_alone(model: Model) -> None:
    samples = model.held_out[5:12]
    together = model.module(
        torch.cat([sample["input"] for sample in samples]), torch.cat([sample["state"] for sample in samples], 1)
    )
    alone = [model.module(*sample.values()) for sample in samples]
    assert torch.equal(together[0], torch.cat([output for output, _ in alone]))
    assert torch.equal(together[1], torch.cat([state for _, state in alone], 1))


def test_babble_is_the_same_for_the_same_seed() -> None:
    assert np.array_equal(babble(3, 0.5), babble(3, 0.5))
    assert not np.array_equal(babble(3, 0.5), babble(4, 0.5))
    assert np.abs(babble(3, 2.0)).max() <= 1
