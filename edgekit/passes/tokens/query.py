"""Visual tokens for one question: a few that say what the query asks for."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.passes.tokens.state import IGNORED
from edgekit.progress import Progress

SAMPLES, BATCH, RATE = 512, 32, 2e-3


class QueryReader(nn.Module):
    """Two inputs: what `see` makes of a picture, read with a query. `see`: image -> [N, P + T, C], P protected tokens
    first; `read`: ([N, *, C], query [N, C]) -> the answer."""

    def __init__(self, see: nn.Module, read: nn.Module, protected: int) -> None:
        super().__init__()
        self.see, self.read, self.protected = see, read, protected

    def forward(self, image: Tensor, query: Tensor) -> Tensor:
        answer: Tensor = self.read(self.see(image), query)
        return answer


class QueryCompression(nn.Module):
    """[N, P + side x side, C] -> [N, P + rows x rows, C]. Each region of the grid becomes one token: its mean, told the
    query, attends to the region's tokens (query-aware convolutional cross-attention).

    Li et al.: Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters (QueCC), arXiv:2411.03312, section
    4. Untrained it is the mean of each region.
    """

    def __init__(self, width: int, side: int, rows: int, protected: int) -> None:
        super().__init__()
        self.protected = protected
        self.ask = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        for weight in (self.ask.weight, self.ask.bias, self.key.weight):
            nn.init.zeros_(weight)
        nn.init.eye_(self.ask.weight)
        self.register_buffer("member", regions(side, rows))

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        assert isinstance(self.member, Tensor)
        grid = tokens[:, self.protected :]
        pooled = (self.member / self.member.sum(1, keepdim=True)) @ grid
        asked = pooled + self.ask(query).unsqueeze(1)
        scores = asked @ self.key(grid).transpose(1, 2) / math.sqrt(grid.shape[2])
        weights = torch.softmax(scores + (1 - self.member) * IGNORED, dim=-1)
        return torch.cat([tokens[:, : self.protected], weights @ grid], 1)


class CompressedReader(QueryReader):
    def __init__(self, whole: QueryReader, compression: QueryCompression) -> None:
        super().__init__(whole.see, whole.read, whole.protected)
        self.compression = compression

    def forward(self, image: Tensor, query: Tensor) -> Tensor:
        answer: Tensor = self.read(self.compression(self.see(image), query), query)
        return answer


def regions(side: int, rows: int) -> Tensor:
    """float [rows x rows, side x side], 1 where a place of the grid lies in a region; as adaptive pooling cuts them."""
    line = torch.zeros(rows, side)
    for index in range(rows):
        line[index, index * side // rows : -(-(index + 1) * side // rows)] = 1
    return torch.kron(line, line)


@dataclass(frozen=True)
class CompressByQuery(Pass):
    """A QueryReader reads `count` tokens, a square number, instead of all. `epochs`: the compression alone is fitted to
    the whole reader's answers on the calibration samples so often; 0 leaves the mean of each region, which no query
    changes.

    A function of the user's that returns `Model("reader", QueryReader(see, read, protected), inputs, ("score",))` is a
    source for `edgekit export package.module:function --compress-tokens query@9`.
    """

    count: int = 9
    epochs: int = 8
    seed: int = 0

    def requires(self, model: Model) -> None:
        if type(model.module) is not QueryReader:
            raise SourceError(
                f"{model.name} is a {type(model.module).__name__}, allowed a QueryReader",
                hint="QueryReader(see, read, protected) joins an image encoder and what reads its tokens",
            )
        if self.epochs < 0:
            raise UsageError(f"{self.epochs} epochs, allowed 0 or more")
        if self.epochs and not model.calibration:
            raise UsageError("no calibration samples to fit the compression to", hint="epochs=0 fits nothing")

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        whole = copy.deepcopy(model.module).eval()
        assert isinstance(whole, QueryReader)
        with torch.no_grad():
            tokens: Tensor = whole.see(model.args[0])
        count = tokens.shape[1] - whole.protected
        side = math.isqrt(count)
        rows = math.isqrt(max(self.count, 0))
        if side * side != count or rows * rows != self.count or not 1 <= rows <= side:
            squares = ", ".join(str(row * row) for row in range(1, side + 1))
            raise UsageError(
                f"{self.count} tokens of {count}, allowed squares of a square grid: {squares}", hint="query@9"
            )
        torch.manual_seed(self.seed)
        compression = QueryCompression(tokens.shape[2], side, rows, whole.protected)
        lost = self._fit(model, whole, compression, progress) if self.epochs else math.nan
        told = f"{count} visual tokens to {self.count} by query"
        fitted = f", {lost:.3f} of the untrained error left" if self.epochs else ""
        return model.evolve_quietly(module=CompressedReader(whole, compression).eval()), told + fitted

    def _fit(self, model: Model, whole: QueryReader, compression: QueryCompression, progress: Progress) -> float:
        """The squared error behind the last epoch over that before the first, both on the calibration samples."""
        rows = [torch.cat(column) for column in zip(*(s.values() for s in model.calibration[:SAMPLES]), strict=True)]
        image, query = rows
        with torch.no_grad():
            tokens = whole.see(image)
            wanted = whole.read(tokens, query)

        def error(index: Tensor | slice) -> Tensor:
            answer: Tensor = whole.read(compression(tokens[index], query[index]), query[index])
            return nn.functional.mse_loss(answer, wanted[index])

        everything = slice(0, len(tokens))
        with torch.no_grad():
            before = float(error(everything))
        whole.requires_grad_(False)
        optimizer = torch.optim.Adam(compression.parameters(), RATE)
        for epoch in range(self.epochs):
            progress("fit the compression", epoch, self.epochs)
            for index in torch.split(torch.randperm(len(tokens)), BATCH):
                optimizer.zero_grad()
                error(index).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        whole.requires_grad_(True)
        with torch.no_grad():
            return float(error(everything)) / max(before, 1e-12)
