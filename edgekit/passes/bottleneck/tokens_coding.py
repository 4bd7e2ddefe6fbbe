"""The modules on either side of a link that k vectors cross: a sequence pooled, and given back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.errors import PlanError
from edgekit.model import Model
from edgekit.passes.bottleneck.axes import Axes, output_gradients
from edgekit.passes.bottleneck.coding import Residual
from edgekit.passes.bottleneck.crossing import Crossing, row_by_row
from edgekit.passes.bottleneck.ladder import spread
from edgekit.passes.bottleneck.token_pooling import LearnedQueries, TokenPool, heads_for

GRADIENT_SAMPLES = 512
TOKEN_MODE, WIDTH_MODE = 1, 2


class TokenEncoder(nn.Module):
    """Tokens [N, T, C] -> components [N, k, C]: pooled, then turned onto axes. The turn comes last, for a quantizer to
    leave in float."""

    def __init__(self, pool: TokenPool, turn: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.pool = pool
        self.turn, self.shift = nn.Parameter(turn.clone()), nn.Parameter(shift.clone())

    def forward(self, *values: Tensor) -> Tensor:
        joined = values[0] if len(values) == 1 else torch.cat(values, WIDTH_MODE)
        components: Tensor = nn.functional.linear(self.pool(joined), self.turn) + self.shift
        return components


class TokenDecoder(nn.Module):
    """Components [N, k, C] -> tokens [N, T, C], parted into `channels`: a fixed mixing, and what each position's
    learned query finds in the k vectors. Vectors that did not cross read as zero."""

    def __init__(self, turn: Tensor, mixing: Tensor, mean: Tensor, channels: Sequence[int], heads: int, hidden: int):
        """`turn` [C, C], `mixing` [T, k], `mean` [T, C]; `hidden`: width of the block behind."""
        super().__init__()
        self.channels = list(channels)
        width = sum(channels)
        self.turn, self.mixing, self.mean = (nn.Parameter(value.clone()) for value in (turn, mixing, mean))
        self.queries = LearnedQueries(len(mixing), width, heads)
        self.residual = Residual(3, width, hidden)

    def forward(self, components: Tensor) -> tuple[Tensor, ...]:
        vectors = nn.functional.linear(components, self.turn)
        tokens = torch.matmul(self.mixing, vectors) + self.mean + self.queries(vectors)
        tokens = self.residual(tokens)
        return (tokens,) if len(self.channels) == 1 else tuple(tokens.split(self.channels, WIDTH_MODE))


def token_crossing(tail: Model) -> Crossing:
    """Raises PlanError where what crosses is no sequence of a fixed number of tokens."""
    crossing = Crossing.of(tail)
    if crossing.rank != 3:
        shapes = ", ".join(str(list(value.shape)) for value in tail.example_inputs.values())
        raise PlanError(
            f"across the cut go {shapes}, allowed tokens [B, N, C]",
            hint="cut between two blocks of the encoder, or --bottleneck transform",
        )
    if TOKEN_MODE not in crossing.positions:
        raise PlanError(
            "the number of tokens that cross is open, or one, or beyond 320; allowed a fixed number",
            hint="give the Model one length: dynamic = {0: 'batch'} alone, or --bottleneck transform",
        )
    return crossing


def token_coders(
    tail: Model, crossing: Crossing, features: Tensor, count: int, regularization: float, seed: int, hidden: int
) -> tuple[TokenEncoder, TokenDecoder]:
    """The best separable pooling of `features` [N, T, C] to `count` vectors in the metric of the tail's sensitivity, in
    closed form: the first axes over the positions, all axes over the channels (axes.py). The learned parts add nothing
    yet."""
    some = features[spread(len(features), GRADIENT_SAMPLES)]
    run = row_by_row(tail)
    gradients = output_gradients(lambda values: run(*crossing.part(values)), some, seed=seed)
    axes = crossing.axes(features, gradients, regularization)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return modules(axes[TOKEN_MODE].keep(count), axes[WIDTH_MODE], crossing.mean(features), crossing, hidden)


def modules(
    over_tokens: Axes, over_width: Axes, mean: Tensor, crossing: Crossing, hidden: int
) -> tuple[TokenEncoder, TokenDecoder]:
    heads = heads_for(len(over_width.encoder))
    shift = -(over_tokens.encoder @ mean @ over_width.encoder.T)
    pool = TokenPool(over_tokens.encoder, len(over_width.encoder), heads)
    decoder = TokenDecoder(over_width.decoder, over_tokens.decoder, mean, crossing.channels, heads, hidden)
    return TokenEncoder(pool, over_width.encoder, shift), decoder
