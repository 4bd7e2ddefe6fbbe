"""Linear attention by tiles: the recurrence it stands for, texts in parts, decays at their ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.linear_attention import LINEAR_ATTENTION, attend


def scene(length: int, width: int = 6, outputs: int = 5, heads: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    queries, keys = (torch.randn(2, heads, length, width, generator=generator) for _ in range(2))
    values = torch.randn(2, heads, length, outputs, generator=generator)
    return queries, keys, values, torch.randn(2, heads, width, outputs, generator=generator)


@pytest.mark.parametrize("decay", [1.0, 0.97, 1e-6, 1e-38])
def test_tiles_equal_the_recurrence_token_by_token(decay: float) -> None:
    queries, keys, values, state = scene(67)
    out, after = LINEAR_ATTENTION.launch(queries, keys, values, torch.full((2,), decay), state)
    running, rows = state.double(), []
    for i in range(67):
        running = decay * running + keys[:, :, i, :, None].double() * values[:, :, i, None, :].double()
        rows.append(queries[:, :, i, None].double() @ running)
    wanted = torch.cat(rows, 2)
    # 67 products of four factors each, and a power of up to 67: a few roundings for each term
    assert (out.double() - wanted).abs().max() < 67 * 2.0**-24 * wanted.abs().max()
    assert (after.double() - running).abs().max() < 67 * 2.0**-24 * running.abs().max()


@pytest.mark.parametrize("cut", [0, 1, 32, 45])
def test_a_text_may_come_in_parts(cut: int) -> None:
    queries, keys, values, state = scene(50)
    decay = torch.tensor([0.9, 1.0])
    whole, last = LINEAR_ATTENTION.launch(queries, keys, values, decay, state)
    first, between = LINEAR_ATTENTION.launch(*(one[:, :, :cut] for one in (queries, keys, values)), decay, state)
    second, after = LINEAR_ATTENTION.launch(*(one[:, :, cut:] for one in (queries, keys, values)), decay, between)
    assert torch.allclose(torch.cat([first, second], 2), whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    assert torch.allclose(after, last, rtol=0, atol=1e-6 * float(last.abs().max()))


def test_without_a_state_the_past_is_empty() -> None:
    queries, keys, values, _ = scene(9)
    out, after = attend(queries, keys, values, torch.ones(2))
    assert torch.allclose(out[:, :, :1], (queries * keys).sum(3)[:, :, :1, None] * values[:, :, :1], atol=1e-5)
    assert torch.allclose(after, keys.transpose(2, 3) @ values, atol=1e-5)


def test_a_later_token_changes_nothing_before_it() -> None:
    queries, keys, values, state = scene(40)
    decay = torch.tensor([0.8, 1.0])
    before, _ = LINEAR_ATTENTION.launch(queries, keys, values, decay, state)
    keys[:, :, 33:], values[:, :, 33:] = 1e6, -1e6
    changed, _ = LINEAR_ATTENTION.launch(queries, keys, values, decay, state)
    assert torch.equal(changed[:, :, :33], before[:, :, :33])
    assert not torch.equal(changed[:, :, 33:], before[:, :, 33:])


def test_operands_may_lie_in_memory_in_any_order() -> None:
    *tokens, state = scene(20)
    decay = torch.tensor([0.8, 1.0])
    wanted = LINEAR_ATTENTION.launch(*tokens, decay, state)
    turned = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in (*tokens, state)]
    found = LINEAR_ATTENTION.launch(*turned[:3], decay, turned[3])
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, float("nan")])
def test_a_decay_that_grows_or_vanishes_is_refused(decay: float) -> None:
    queries, keys, values, state = scene(3)
    with pytest.raises(UsageError, match=r"decay is in \(0, 1\], got"):
        attend(queries, keys, values, torch.tensor([1.0, decay]), state)


def test_wider_keys_than_the_kernel_holds_are_refused() -> None:
    queries, keys, values, state = scene(3, width=129)
    with pytest.raises(UsageError, match="keys are 129 wide, allowed: 128"):
        LINEAR_ATTENTION.launch(queries, keys, values, torch.ones(2), state)
