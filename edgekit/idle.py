"""Options that would have no effect beside the others of a recipe: who gives one expects something of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.recipe import Recipe, recipe_options


@dataclass(frozen=True)
class Need:
    """`option`, a field of Recipe, has an effect only where it `is_met`."""

    option: str
    is_met: bool
    told: str
    fix: str


def refuse_idle(recipe: Recipe, formats: Collection[str]) -> None:
    """`formats`: those that the recipe tries on its device. Raises UsageError for an option that is given and has no
    effect."""
    usual = {one.name: one.default for one in recipe_options()}
    for need in _needs(recipe, formats):
        value = getattr(recipe, need.option)
        if not need.is_met and value != usual[need.option]:
            raise UsageError(f"--{need.option.replace('_', '-')} {need.told}", hint=need.fix)


def _needs(recipe: Recipe, formats: Collection[str]) -> Iterator[Need]:
    splits = recipe.edge is not None or recipe.cloud is not None
    prunes = recipe.prune_weights != "none"
    compressor = recipe.compress_tokens.partition("@")[0]
    quantizes = recipe.quantize != "none"
    tier = "name the profile that takes over: --edge x86-server"
    yield Need("split", splits or recipe.split == "none", "without --edge or --cloud", tier)
    yield Need("bottleneck", splits, "without --edge or --cloud", tier)
    pools = compressor == "pool"
    yield Need(
        "train", splits or prunes or pools, "without --edge, --cloud, --prune-weights or --compress-tokens pool", tier
    )
    squeezes = splits and (recipe.train is not None or recipe.bottleneck == "learned")
    learns = squeezes or pools or compressor == "query"
    yield Need("epochs", learns, "without a bottleneck or tokens that learn", "add --train DIR, and --edge or --cloud")
    yield Need("recover", prunes, "without --prune-weights", "say what is pruned: --prune-weights vib@0.5")
    for option in ("observer", "equalize"):
        yield Need(option, quantizes, "with --quantize none", "leave one of them out")
    yield Need("opset", "onnx" in formats, "without a format that has one", "--format onnx")
