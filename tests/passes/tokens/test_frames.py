"""Frames of a clip: the telling ones are encoded, for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import run_model
from edgekit.passes.base import Pipeline
from edgekit.passes.capture import Capture
from edgekit.passes.tokens.frames import ClipEncoder, SelectFrames, choose_frames, describe, shares
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.zoo.fashion import fashion_vit


def scenes(*lengths: int) -> Tensor:
    """Descriptions [1, F, D]: scene s points along axis s, its frames hardly differ."""
    torch.manual_seed(0)
    axes = torch.eye(len(lengths), 8)
    frames = torch.cat([axes[scene].expand(length, -1) for scene, length in enumerate(lengths)])
    noisy = frames + 0.01 * torch.randn_like(frames)
    return (noisy / noisy.norm(dim=1, keepdim=True)).unsqueeze(0)


def clip(*pictures: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """[1, F, 1, 28, 28]: each picture [1, 1, 28, 28] in turn, trembling by a pixel."""
    frames = [
        torch.roll(picture, place % 2, dims=3)
        for picture, length in zip(pictures, lengths, strict=True)
        for place in range(length)
    ]
    return torch.cat(frames).unsqueeze(0)


def clips() -> Model:
    frame = fashion_vit()
    pictures = [sample["image"] for sample in frame.held_out]
    samples: list[Sample] = [
        {"clip": clip(*pictures[3 * index : 3 * index + 3], lengths=(9, 1, 2))} for index in range(10)
    ]
    return Model(
        name="clips",
        module=ClipEncoder(frame.module).eval(),
        example_inputs=samples[0],
        output_names=("logits",),
        dynamic={"clip": {0: "batch"}},
        calibration=tuple(samples[:2]),
        held_out=tuple(samples[2:]),
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return clips()


def test_each_scene_is_seen_however_short() -> None:
    chosen = choose_frames(scenes(9, 1, 2), 4, 0.25)[0].tolist()
    assert {0 if place < 9 else 1 if place == 9 else 2 for place in chosen} == {0, 1, 2}
    assert chosen == sorted(set(chosen))


def test_uniform_frames_are_evenly_spread() -> None:
    assert choose_frames(scenes(12), 3, 1.0)[0].tolist() == [2, 6, 10]


@pytest.mark.parametrize("count", [1, 5, 12])
def test_as_many_different_frames_as_asked_for(count: int) -> None:
    for uniform in (0.0, 0.5, 1.0):
        chosen = choose_frames(scenes(4, 4, 4), count, uniform)[0].tolist()
        assert len(set(chosen)) == count


def test_a_frame_counts_as_often_as_others_are_like_it() -> None:
    described = scenes(6, 2)
    assert shares(described, torch.tensor([[1, 7]]))[0].tolist() == pytest.approx([0.75, 0.25])


def test_all_frames_kept_is_the_same_answer(model: Model) -> None:
    same = SelectFrames(12)(model)
    for sample in model.held_out:
        assert torch.allclose(same.forward(sample)["logits"], model.forward(sample)["logits"], atol=1e-4)


def test_few_frames_by_content_tell_more_than_as_many_evenly_spread(model: Model) -> None:
    def error(uniform: float) -> float:
        chosen = SelectFrames(4, uniform)(model)
        pairs = [(chosen.forward(one)["logits"], model.forward(one)["logits"]) for one in model.held_out]
        return float(torch.stack([(got - want).square().mean() for got, want in pairs]).mean())

    assert error(0.25) < 0.8 * error(1.0)


def test_thumbnails_tell_pictures_apart(model: Model) -> None:
    described = describe(model.held_out[0]["clip"])[0]
    similar = described @ described.T
    assert similar[3, 4] > similar[3, 9] and similar[3, 4] > 0.8


def test_the_graph_chooses_for_each_clip_with_an_open_batch(model: Model) -> None:
    compressed = SelectFrames(4)(model)
    captured = Capture()(compressed)
    want, got = (run_model(one, model.held_out)["logits"] for one in (compressed, captured))
    assert np.abs(want - got).max() < 1e-4


def test_the_work_is_really_less(model: Model) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    compressed = Pipeline([SelectFrames(4), PruneTokens("merge", 0.8)])(model)
    assert [entry.name for entry in compressed.history] == ["SelectFrames", "PruneTokens"]
    for one in (model, compressed):
        with FlopCounterMode(display=False) as counter:
            one.forward(one.example_inputs)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.33 * counts[0]


def test_what_cannot_be_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="allowed 1 to 12"):
        SelectFrames(13)(model)
    with pytest.raises(UsageError, match="allowed 0 to 1"):
        SelectFrames(4, 1.5)(model)
    with pytest.raises(SourceError, match="allowed a ClipEncoder"):
        SelectFrames(4)(fashion_vit())
    with pytest.raises(UsageError, match="any number of frames"):
        SelectFrames(4)(model.evolve_quietly(dynamic={"clip": {1: "frames"}}))
    flat = model.evolve_quietly(
        module=ClipEncoder(nn.Identity()), example_inputs={"clip": torch.ones(1, 2)}, calibration=(), held_out=()
    )
    with pytest.raises(UsageError, match=r"\[N, frames, C, H, W\]"):
        SelectFrames(1)(flat)
