"""Width by the largest absolute weights: gated and plain feed-forward layers of any module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.passes.weights.magnitude import find_mlps, magnitudes, maximum_absolute_weight, narrow_mlps
from edgekit.passes.weights.stacks import blocks_of, plain


def _llama() -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=16, intermediate_size=48)
    return nn.Sequential(LlamaMLP(config), LlamaMLP(config)).eval()


def _dinov2() -> nn.Module:
    from transformers import Dinov2Config
    from transformers.models.dinov2.modeling_dinov2 import Dinov2SwiGLUFFN

    torch.manual_seed(0)
    return nn.Sequential(Dinov2SwiGLUFFN(Dinov2Config(hidden_size=24, mlp_ratio=2))).eval()


def _plain() -> nn.Module:
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPMLP

    torch.manual_seed(0)
    return nn.Sequential(CLIPMLP(CLIPTextConfig(hidden_size=16, intermediate_size=48))).eval()


@pytest.mark.parametrize(("make", "gated"), [(_llama, True), (_dinov2, True), (_plain, False)])
def test_units_that_are_silent_go_first_and_leave_no_trace(make: object, gated: bool) -> None:
    """Half of the units with tiny weights: without them the answers are the same to float32."""
    module = make()  # type: ignore[operator]
    mlps = find_mlps(module)
    assert mlps and all(mlp.is_gated == gated for mlp in mlps)
    for mlp in mlps:
        holder = module.get_submodule(mlp.path)
        quiet = torch.randperm(mlp.units)[: mlp.units // 2]
        rows = torch.cat([quiet, quiet + mlp.units]) if mlp.is_joint else quiet
        with torch.no_grad():
            for name in mlp.expand:
                getattr(holder, name).weight[rows] *= 1e-9
                if getattr(holder, name).bias is not None:
                    getattr(holder, name).bias[rows] = 0
    width = next(module.parameters()).shape[1]
    tokens = torch.randn(2, 3, width)
    before = module(tokens)
    narrow, told = narrow_mlps(module, 0.5)
    assert torch.allclose(narrow(tokens), before, atol=1e-6)
    assert ("gated" in told) == gated
    assert all(new.units == old.units // 2 for new, old in zip(find_mlps(narrow), mlps, strict=True))
    assert sum(p.numel() for p in narrow.parameters()) < 0.6 * sum(p.numel() for p in module.parameters())
    assert torch.equal(module(tokens), before)


def test_a_unit_is_worth_the_largest_weights_of_gate_and_value() -> None:
    gate, value = torch.tensor([[1.0, -5.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.1], [-9.0, 3.0]])
    assert maximum_absolute_weight(gate, value).tolist() == [5.5, 11.0]
    assert maximum_absolute_weight(gate).tolist() == [5.0, 2.0]


def test_heads_compare_by_their_own_rows(small_vit: Model) -> None:
    blocks = blocks_of(plain(small_vit))
    with torch.no_grad():
        blocks[0].attention.value.weight[8:16] *= 100
    scores = magnitudes(blocks)
    assert scores.heads[0].argmax() == 1
    assert [len(units) for units in scores.units] == [64, 64, 64]


def test_what_cannot_be_narrowed_is_told() -> None:
    with pytest.raises(SourceError, match="neither an encoder"):
        narrow_mlps(nn.Sequential(nn.Conv2d(3, 8, 3)), 0.5, "a-net")
    with pytest.raises(UsageError, match=r"0\.167 at least"):
        narrow_mlps(_llama(), 0.1)
