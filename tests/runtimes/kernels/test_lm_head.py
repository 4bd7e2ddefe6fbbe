"""The sparse head: the maximum comes first, padding is not read, and small weights are as exact as large ones."""

from __future__ import annotations

import torch

from edgekit.runtimes.kernels.lm_head import LM_HEAD, weigh_words


def test_the_maximum_may_be_taken_before_bias_relu_and_log1p() -> None:
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(50, 400, generator=generator) * torch.logspace(-8, 8, 400)
    bias = torch.randn(400, generator=generator)
    last = torch.log1p(torch.relu(products + bias)).amax(0)
    first = torch.log1p(torch.relu(products.amax(0) + bias))
    assert torch.equal(first, last)


def test_what_stands_at_invalid_positions_is_not_read() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 21, 9, generator=generator)
    valid = torch.arange(21)[None, :] < torch.tensor([[20], [3]])
    embeddings, bias = torch.randn(11, 9, generator=generator), torch.randn(11, generator=generator)
    clean = LM_HEAD.launch(hidden, embeddings, bias, valid)
    for padding in (1e9, float("inf"), float("nan")):
        padded = hidden.masked_fill(~valid[:, :, None], padding)
        assert torch.equal(LM_HEAD.launch(padded, embeddings, bias, valid), clean)
    alone = LM_HEAD.launch(hidden[1:, :3], embeddings, bias, valid[1:, :3])
    assert torch.allclose(alone, clean[1:], rtol=1e-6)


def test_each_weight_is_exact_whatever_its_size() -> None:
    logits = torch.logspace(-30, 30, 97)
    weights = LM_HEAD.launch(torch.ones(1, 1, 1), logits[:, None], torch.zeros(97), torch.ones(1, 1, dtype=torch.bool))
    wanted = logits.double().log1p()
    error = ((weights[0].double() - wanted) / wanted).abs().max()
    assert error < 4 * torch.finfo(torch.float32).eps  # a logarithm, a difference, a quotient and a product


def test_bias_and_mask_may_be_left_out() -> None:
    hidden, embeddings = torch.tensor([[[1.0, 0.0], [0.0, -3.0]]]), torch.tensor([[2.0, 1.0], [-1.0, -1.0]])
    assert torch.allclose(weigh_words(hidden, embeddings), torch.tensor([[3.0, 4.0]]).log())
    only_first = weigh_words(hidden, embeddings, valid=torch.tensor([[True, False]]))
    assert torch.allclose(only_first, torch.tensor([[3.0, 1.0]]).log())
