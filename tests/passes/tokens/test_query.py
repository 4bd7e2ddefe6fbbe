"""Few visual tokens for a query: fashion-vit's first blocks see, the others read whether a class is in the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import run_model
from edgekit.passes.capture import Capture
from edgekit.passes.tokens.query import CompressByQuery, CompressedReader, QueryCompression, QueryReader, regions
from edgekit.zoo.fashion import FashionVit, fashion_vit

BLOCKS_THAT_SEE = 2


class See(nn.Module):
    def __init__(self, vit: FashionVit) -> None:
        super().__init__()
        self.patches, self.blocks = vit.patches, vit.blocks[:BLOCKS_THAT_SEE]
        self.class_token, self.positions = vit.class_token, vit.positions

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        seen: Tensor = self.blocks(tokens)
        return seen


class Read(nn.Module):
    """How well the class that a query [N, 64] is the classifier's row of fits."""

    def __init__(self, vit: FashionVit) -> None:
        super().__init__()
        self.blocks, self.norm = vit.blocks[BLOCKS_THAT_SEE:], vit.norm

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        return (self.norm(self.blocks(tokens))[:, 0] * query).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def reader() -> Model:
    """Every picture with its likeliest class and another one."""
    whole = fashion_vit()
    vit = whole.module
    assert isinstance(vit, FashionVit)
    queries = vit.classifier.weight.detach()

    def asked(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        found = []
        for index, sample in enumerate(samples):
            likeliest = int(whole.forward(sample)["logits"].argmax())
            found += [{**sample, "query": queries[label][None]} for label in (likeliest, index % 10)]
        return tuple(found)

    calibration, held_out = asked(whole.calibration), asked(whole.held_out[:64])
    module = QueryReader(See(vit), Read(vit), protected=1).eval()
    dynamic = {"image": {0: "batch"}, "query": {0: "batch"}}
    return Model("reader", module, dict(calibration[0]), ("score",), "match", dynamic, calibration, held_out)


def test_regions_cover_the_grid_as_adaptive_pooling_does() -> None:
    grid = torch.randn(1, 1, 7, 7)
    for rows in (1, 3, 4, 7):
        member = regions(7, rows)
        pooled = (member / member.sum(1, keepdim=True)) @ grid.flatten()
        want = nn.functional.adaptive_avg_pool2d(grid, rows).flatten()
        assert torch.allclose(pooled, want, atol=1e-6)


def test_untrained_each_region_is_its_mean_and_the_protected_stay() -> None:
    tokens = torch.randn(2, 1 + 16, 8)
    compressed = QueryCompression(8, side=4, rows=2, protected=1)(tokens, torch.randn(2, 8))
    assert compressed.shape == (2, 1 + 4, 8) and torch.equal(compressed[:, 0], tokens[:, 0])
    corner = tokens[:, 1:].reshape(2, 4, 4, 8)[:, :2, :2].mean((1, 2))
    assert torch.allclose(compressed[:, 1], corner, atol=1e-6)


def test_a_query_moves_the_weights_within_a_region_alone() -> None:
    compression = QueryCompression(8, side=4, rows=2, protected=0)
    nn.init.eye_(compression.key.weight)
    tokens = torch.randn(1, 16, 8)
    query = 40 * tokens[:, 5]  # the last of the first region
    compressed = compression(tokens, query)
    assert torch.allclose(compressed[0, 0], tokens[0, 5], atol=0.1)
    others = tokens.clone()
    others[0, 10:] = 0.0
    assert torch.allclose(compression(others, query)[0, 0], compressed[0, 0], atol=1e-5)


def test_fitted_queries_tell_more_than_the_mean_of_regions(reader: Model) -> None:
    want = run_model(reader, reader.held_out)["score"]
    plain, fitted = CompressByQuery(9, epochs=0)(reader), CompressByQuery(9)(reader)
    errors = [np.square(run_model(model, reader.held_out)["score"] - want).mean() for model in (plain, fitted)]
    assert errors[1] < 0.9 * errors[0]
    assert "49 visual tokens to 9 by query" in fitted.history[-1].detail
    assert isinstance(fitted.module, CompressedReader)


def test_as_many_regions_as_tokens_is_the_same_answer(reader: Model) -> None:
    same = CompressByQuery(49, epochs=0)(reader)
    want, got = (run_model(model, reader.held_out[:16])["score"] for model in (reader, same))
    assert np.abs(want - got).max() < 1e-4


def test_the_given_reader_is_left_as_it_was(reader: Model) -> None:
    before = run_model(reader, reader.held_out[:8])["score"]
    CompressByQuery(9, epochs=1)(reader)
    assert np.array_equal(run_model(reader, reader.held_out[:8])["score"], before)
    assert all(value.requires_grad for value in reader.module.parameters())


def test_the_graph_is_captured_with_both_inputs(reader: Model) -> None:
    compressed = CompressByQuery(9, epochs=1)(reader)
    captured = Capture()(compressed)
    want, got = (run_model(model, reader.held_out[:16])["score"] for model in (compressed, captured))
    assert np.abs(want - got).max() < 1e-4


def test_what_cannot_be_is_refused(reader: Model) -> None:
    for count in (0, 8, 64):
        with pytest.raises(UsageError, match="squares of a square grid: 1, 4, 9, 16, 25, 36, 49"):
            CompressByQuery(count)(reader)
    with pytest.raises(UsageError, match="no calibration samples"):
        CompressByQuery(9)(reader.evolve_quietly(calibration=()))
    with pytest.raises(SourceError, match="allowed a QueryReader"):
        CompressByQuery(9)(fashion_vit())
