from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.attention import OpenAttention, attentions
from edgekit.quantizers.reparameterization import Change, Reparameterize, find_sites, reparameterize
from edgekit.quantizers.schemes import ONNX_X86, TENSORRT
from edgekit.report.metrics import sqnr_db

from .conftest import captured


class Encoder(nn.Module):
    """A convolution with relu, tokens, one block with queries, keys and values in one layer, the first token's head."""

    def __init__(self, spread: float = 3.0) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.norm1, self.qkv, self.projection = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)
        for norm in (self.norm1, self.norm2, self.norm):
            norm.weight.data = torch.exp(spread * torch.rand(16) - spread / 2)
            norm.bias.data = spread * torch.randn(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        split = self.qkv(self.norm1(tokens)).reshape(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(*split.unbind(0))
        tokens = tokens + self.projection(heads.transpose(1, 2).reshape(len(x), -1, 16))
        tokens = tokens + self.down(nn.functional.gelu(self.up(self.norm2(tokens))))
        return self.head(self.norm(tokens)[:, 0])


@pytest.fixture(scope="module")
def encoder() -> Model:
    torch.manual_seed(0)
    return captured(Encoder(), torch.randn(1, 2, 16, 16), "encoder")


def outputs(model: Model) -> np.ndarray:
    return np.stack([model.forward(sample)["y"].numpy() for sample in model.held_out])


def test_sites_are_found_through_attention_relu_and_the_first_token(encoder: Model) -> None:
    sites = {site.gain: site for site in find_sites(encoder)}
    assert sites.keys() == {"patches.0.weight", "norm1.weight", "qkv.weight", "norm2.weight", "norm.weight"}
    assert not sites["patches.0.weight"].may_shift
    assert sites["qkv.weight"].rows.tolist() == list(range(32, 48))
    assert all(site.may_shift for name, site in sites.items() if name != "patches.0.weight")


@pytest.mark.parametrize("opened", [False, True])
def test_any_change_leaves_the_function_as_it_was(encoder: Model, opened: bool) -> None:
    model = OpenAttention()(encoder) if opened else encoder
    graph = model.copy_graph()
    generator = torch.Generator().manual_seed(3)
    sites = find_sites(model)
    assert len(sites) == 5
    for site in sites:
        count = len(site.rows)
        centre = torch.randn(count, generator=generator) if site.may_shift else torch.zeros(count)
        reparameterize(graph, site, Change(centre, torch.rand(count, generator=generator) * 3 + 0.2))
    changed = model.evolve_quietly(module=graph)
    # float32 rounds at 2^-24, some 140 dB; factors of 3 and sums of 16 to 48 numbers take a few bits of it
    assert sqnr_db(outputs(encoder), outputs(changed)) > 110


@pytest.mark.parametrize("scheme", [ONNX_X86, TENSORRT])
def test_the_search_evens_out_what_layer_norms_give(encoder: Model, scheme) -> None:  # type: ignore[no-untyped-def]
    changed = Reparameterize(scheme, learn=False, powers=(1.0,))(encoder)
    assert sqnr_db(outputs(encoder), outputs(changed)) > 110
    norms = [node.name for node in encoder.graph.graph.nodes if node.target is torch.ops.aten.layer_norm.default]
    for before, after in zip(spans(encoder, norms), spans(changed, norms), strict=True):
        assert before.max() / before.min() > 5
        assert after.max() / after.min() < 2.5


def spans(model: Model, names: list[str]) -> list[torch.Tensor]:
    """[C] a name: the range of each channel over the calibration data."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.name in seen:
                seen[n.name].append(value.reshape(-1, value.shape[-1]))
            return value

    for sample in model.calibration:
        Watcher(model.graph).run(*sample.values())
    rows = [torch.cat(values[:]) for values in seen.values()]
    return [value.amax(0) - value.amin(0) for value in rows[:2]]


def test_an_activation_that_something_else_reads_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm(x)
            return normed + self.linear(normed)

    assert find_sites(captured(Shared(), torch.randn(1, 3, 8), "shared")) == []


def test_a_layer_without_bias_or_of_kept_precision_is_left_alone(encoder: Model) -> None:
    plain = captured(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4, bias=False)), torch.randn(1, 3, 8), "plain")
    assert find_sites(plain) == []
    head = next(
        node.name for node in reversed(encoder.graph.graph.nodes) if node.target is torch.ops.aten.linear.default
    )
    assert "norm.weight" not in {site.gain for site in find_sites(encoder, frozenset({head}))}


def test_opened_attention_is_the_same_and_all_operands_are_found(encoder: Model) -> None:
    opened = OpenAttention()(FoldBatchNorm()(encoder))
    assert sqnr_db(outputs(encoder), outputs(opened)) > 120
    (found,) = attentions(opened.graph)
    assert found.scores.args == (found.query, found.key)
    assert found.mixed.args == (found.probabilities, found.value)


def test_causal_attention_stays_whole() -> None:
    class Causal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    assert list(attentions(OpenAttention()(captured(Causal(), torch.randn(1, 2, 4, 8), "causal")).graph)) == []
