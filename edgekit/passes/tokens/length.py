"""One length for inputs of any length: a graph with fewer tokens from block to block is static."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgekit.bundle.manifest import TextPreprocess
from edgekit.errors import DataError, UsageError
from edgekit.model import Model, Sample
from edgekit.passes.base import Pass
from edgekit.progress import Progress


@dataclass(frozen=True)
class FixLength(Pass):
    """Every sample at `tokens` tokens, the dimension no longer open. None: the longest sample's length.

    Shorter samples are padded behind, with 0 in the mask; longer ones lose what is behind, but for the closing token
    where a tokenizer put one there. The batch stays open.
    """

    tokens: int | None = None

    def requires(self, model: Model) -> None:
        """Raises UsageError where no length is open, several are, or `tokens` is below 2; DataError where samples must
        be padded and no mask would tell."""
        if model.onnx_path is not None:
            raise UsageError(f"{model.name} is a trained .onnx file, whose lengths stay as they are")
        open_dimensions = open_lengths(model)
        symbols = {symbol for dims in open_dimensions.values() for symbol in dims.values()}
        if len(symbols) != 1:
            told = ", ".join(sorted(symbols)) or "none"
            raise UsageError(
                f"{model.name} has the open lengths {told}, allowed one", hint="leave --length out: it is for text"
            )
        if self.tokens is not None and self.tokens < 2:
            raise UsageError(f"a length of {self.tokens} tokens, allowed 2 or more")
        sizes = {size for sample in _samples(model) for size in _sizes(sample, open_dimensions)}
        if _mask(model) is None and min(sizes) < self._length(model):
            raise DataError(
                f"samples of {min(sizes)} tokens cannot be padded to {self._length(model)}: no input is a mask",
                hint="give the model an attention_mask, or samples of one length",
            )

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        length, dims = self._length(model), open_lengths(model)
        padding = _padding_id(model.tokenizer)
        mask = _mask(model)
        closes = model.tokenizer is not None and mask is not None

        def fix(sample: Sample) -> Sample:
            count = int(sample[mask].sum()) if mask is not None else max(_sizes(sample, dims))
            last = count - 1 if closes and count > length else None
            return {
                name: _fit(value, min(dims[name]), length, padding if name == "input_ids" else 0, last)
                if name in dims
                else value
                for name, value in sample.items()
            }

        cut = sum(_content(sample, mask, dims) > length for sample in (*model.calibration, *model.held_out))
        preprocess = model.preprocess
        if isinstance(preprocess, TextPreprocess):
            preprocess = preprocess.model_copy(update={"max_length": length})
        fixed = model.evolve_quietly(
            example_inputs=fix(model.example_inputs),
            calibration=tuple(fix(sample) for sample in model.calibration),
            held_out=tuple(fix(sample) for sample in model.held_out),
            dynamic={name: {dim: s for dim, s in own.items() if dim == 0} for name, own in model.dynamic.items()},
            preprocess=preprocess,
        )
        symbol = next(iter(next(iter(dims.values())).values()))
        shortened = f", {cut} samples cut" if cut else ""
        return fixed, f"{symbol} fixed at {length}{shortened}: inputs are padded to it and cut at it"

    def ensures(self, before: Model, after: Model) -> None:
        mask = _mask(after)
        if mask is not None and not all(bool(sample[mask].any()) for sample in _samples(after)):
            raise DataError("a sample has no content left, its mask is 0 everywhere", hint="choose a larger --length")

    def _length(self, model: Model) -> int:
        if self.tokens is not None:
            return self.tokens
        return max(size for sample in _samples(model) for size in _sizes(sample, open_lengths(model)))


def open_lengths(model: Model) -> dict[str, dict[int, str]]:
    """The dynamic dimensions but the first, the batch: input -> {dimension: name}."""
    found = {name: {dim: s for dim, s in dims.items() if dim != 0} for name, dims in model.dynamic.items()}
    return {name: dims for name, dims in found.items() if dims}


def _samples(model: Model) -> tuple[Sample, ...]:
    return (model.example_inputs, *model.calibration, *model.held_out)


def _sizes(sample: Sample, dims: dict[str, dict[int, str]]) -> list[int]:
    return [sample[name].shape[dim] for name, own in dims.items() for dim in own]


def _mask(model: Model) -> str | None:
    """The input that is 1 for content and 0 for padding, [N, T]."""
    dims = open_lengths(model)
    names = [
        name
        for name, value in model.example_inputs.items()
        if name.endswith("mask") and value.dim() == 2 and (not dims or name in dims)
    ]
    return names[0] if names else None


def _content(sample: Sample, mask: str | None, dims: dict[str, dict[int, str]]) -> int:
    return int(sample[mask].sum()) if mask is not None else max(_sizes(sample, dims))


def _fit(value: Tensor, dim: int, length: int, padding: int, last: int | None) -> Tensor:
    """`value` with `length` places along `dim`; where it is cut its place `last` comes to stand at the end."""
    size = value.shape[dim]
    if size >= length:
        kept = value.narrow(dim, 0, length)
        if last is None:
            return kept.contiguous()
        return torch.cat([kept.narrow(dim, 0, length - 1), value.narrow(dim, last, 1)], dim)
    shape = list(value.shape)
    shape[dim] = length - size
    return torch.cat([value, torch.full(shape, padding, dtype=value.dtype)], dim)


def _padding_id(tokenizer: Path | None) -> int:
    """Of [PAD] in a tokenizer file, 0 elsewhere; the mask hides it anyway."""
    if tokenizer is None:
        return 0
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8")).get("model", {}).get("vocab", {})
    return int(vocabulary.get("[PAD]", 0)) if isinstance(vocabulary, dict) else 0
