"""What `--compress-tokens` asks for: tokens of a number, where `--prune-tokens` speaks of a share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from edgekit.errors import UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.registry import TOKEN_COMPRESSORS


def compress_tokens(recipe: Recipe, model: Model, checkpoint: Path, progress: Progress) -> Model:
    """`model` is not captured yet. `checkpoint`: a folder, from which an interrupted training goes on.

    Raises UsageError, UnknownNameError, SourceError or DataError for what cannot be compressed.
    """
    if model.onnx_path is not None:
        raise UsageError(
            f"{model.name} is a trained .onnx file, and tokens are compressed in a torch module",
            hint="give the module that the file was exported from",
        )
    step = parse(
        recipe.compress_tokens,
        train=None if recipe.train is None else Path(recipe.train),
        epochs=recipe.epochs,
        seed=recipe.seed,
        checkpoint=checkpoint,
    )
    return step(model, progress)


def check_compression(recipe: Recipe) -> None:
    """Raises UsageError or UnknownNameError."""
    parse(recipe.compress_tokens)
    asks = "--prune-tokens" if recipe.prune_tokens != "none" else "a search" if recipe.searches else ""
    if asks and recipe.compress_tokens.startswith("pool"):
        raise UsageError(
            f"--compress-tokens {recipe.compress_tokens} with {asks}, and pooled tokens are not pruned",
            hint="export a bundle for each and compare them",
        )


def parse(asked: str, **options: Any) -> Pass:
    """`asked`: a method with a number, as pool@16. Those of `options` that the method has and that are not None are
    its own. Raises UnknownNameError or UsageError."""
    method, _, text = asked.partition("@")
    if method not in TOKEN_COMPRESSORS:
        raise UnknownNameError("token compressor", method, ["none", *TOKEN_COMPRESSORS])
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"the number that is left is {text or 'nothing'!r}, allowed 1 and more",
            hint=f"--compress-tokens {method}@9",
        )
    kind = TOKEN_COMPRESSORS.load(method)
    known = {field.name for field in fields(kind)}
    step: Pass = kind(
        count=int(text), **{name: value for name, value in options.items() if name in known and value is not None}
    )
    return step
