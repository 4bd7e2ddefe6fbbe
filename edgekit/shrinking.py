"""What makes the user's module smaller before it is captured: one task of it, one length, fewer weights, fewer tokens.

Each is imported where it is asked for: most exports ask for none.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

from edgekit.model import Model
from edgekit.parity import Outputs, judged_samples, run_model
from edgekit.preparation import prepare
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.unfinished import recovery_folder


def check_shrinking(recipe: Recipe) -> None:
    """Before a model is loaded. Raises UsageError or UnknownNameError for options that cannot be."""
    if recipe.prune_tokens not in ("none", "auto"):
        from edgekit.token_pruning import parse as parse_tokens

        parse_tokens(recipe.prune_tokens)
    if recipe.compress_tokens != "none":
        from edgekit.token_compression import check_compression

        check_compression(recipe)
    if recipe.prune_heads not in ("none", "auto"):
        from edgekit.token_pruning import parse_heads

        parse_heads(recipe.prune_heads)
    if recipe.prune_weights not in ("none", "auto"):
        from edgekit.weight_pruning import parse as parse_weights

        parse_weights(recipe.prune_weights)


def keep_task(recipe: Recipe, original: Model, progress: Progress) -> Model:
    if recipe.keep_task is None:
        return original
    from edgekit.passes.adaptive.tasks import KeepTask

    return KeepTask(recipe.keep_task)(original, progress)


@dataclass(frozen=True)
class Shrunk:
    """`before`: the whole model's answers, from which the quality is counted; None where `model` gives the same.
    `whole`: what it was before weights or tokens went, captured; None where none did."""

    model: Model
    before: Outputs | None = None
    whole: Model | None = None


def shrink(recipe: Recipe, original: Model, progress: Progress) -> Shrunk:
    """One length, fewer weights and a number of tokens, where they are asked for."""
    before: Outputs | None = None
    if recipe.length is not None or recipe.prune_tokens != "none":
        from edgekit.token_pruning import fix_length

        original, before = fix_length(original, recipe.length, progress)
    if not _learns(recipe):
        return Shrunk(original, before)
    whole, _ = prepare(original, progress)
    if before is None:
        before = run_model(whole, judged_samples(whole))
    place = recovery_folder(recipe, original)
    if recipe.prune_weights != "none":
        from edgekit.weight_pruning import USUAL_MINUTES, prune_weights

        original = prune_weights(
            original,
            recipe.prune_weights,
            minutes=USUAL_MINUTES if recipe.recover is None else recipe.recover,
            train=recipe.train,
            max_drop=recipe.max_drop,
            progress=progress,
            checkpoint=place,
            seed=recipe.seed,
        )
    if recipe.compress_tokens != "none":
        from edgekit.token_compression import compress_tokens

        original = compress_tokens(recipe, original, place / "tokens", progress)
    return Shrunk(original, before, whole)


def _learns(recipe: Recipe) -> bool:
    return recipe.prune_weights != "none" or recipe.compress_tokens != "none"


def shorten(recipe: Recipe, original: Model, progress: Progress) -> Model:
    """Fewer heads, then fewer tokens from block to block."""
    from edgekit.token_pruning import prune_heads, prune_tokens

    headed = prune_heads(original, recipe.prune_heads, recipe.max_drop, progress)
    return prune_tokens(headed, recipe.prune_tokens, recipe.max_drop, progress)


def without_auto(recipe: Recipe) -> Recipe:
    """With the heads and tokens alone that were asked for by number."""
    return replace(
        recipe,
        prune_tokens="none" if recipe.prune_tokens == "auto" else recipe.prune_tokens,
        prune_heads="none" if recipe.prune_heads == "auto" else recipe.prune_heads,
    )


def forget_recovery(recipe: Recipe, original: Model) -> None:
    """Once its export is done."""
    if _learns(recipe):
        shutil.rmtree(recovery_folder(recipe, original), ignore_errors=True)
