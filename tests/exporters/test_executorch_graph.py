from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from edgekit.exporters.executorch_graph import attention, keep_mean_dimensions

# products of 8 and sums over 7 numbers near 1 in another order
TOLERANCE = 32 * torch.finfo(torch.float32).eps


@pytest.fixture
def heads() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, 5, 8, generator=generator),
        torch.randn(2, 3, 7, 8, generator=generator),
        torch.randn(2, 3, 7, 4, generator=generator),
    )


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 1, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("boolean", [True, False])
def test_attention_matches_torch_under_any_mask(
    heads: tuple[Tensor, Tensor, Tensor], shape: tuple[int, ...], boolean: bool
) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    given = mask if boolean else torch.where(mask, 0.0, -50.0)
    wanted = functional.scaled_dot_product_attention(*heads, attn_mask=given)
    torch.testing.assert_close(attention(*heads, attn_mask=given), wanted, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_row_that_may_look_nowhere_gives_zeros_like_torch(heads: tuple[Tensor, Tensor, Tensor]) -> None:
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    result = attention(*heads, attn_mask=mask)
    assert (result[:, :, 2] == 0).all()
    wanted = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
    torch.testing.assert_close(result, wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.1}])
def test_attention_obeys_its_options(heads: tuple[Tensor, Tensor, Tensor], options: dict) -> None:
    wanted = functional.scaled_dot_product_attention(*heads, **options)
    torch.testing.assert_close(attention(*heads, **options), wanted, atol=TOLERANCE, rtol=TOLERANCE)


def test_grouped_queries_share_keys() -> None:
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    wanted = functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, key, enable_gqa=True), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("dims", [(2, 3), (-1, -2)])
def test_a_mean_over_height_and_width_keeps_its_numbers_and_its_shape(dims: tuple[int, int]) -> None:
    class Mean(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean(dims) * 2

    image = torch.rand(2, 3, 4, 5)
    graph = torch.export.export(Mean(), (image,)).module()
    rewritten = keep_mean_dimensions(graph)
    means = [node for node in rewritten.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert means[0].args[2] is True
    torch.testing.assert_close(rewritten(image), Mean()(image), atol=0, rtol=0)
