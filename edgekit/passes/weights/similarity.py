"""Layers that change little: the cosine between what goes into a block and what comes out, on calibration data.

The inactive layers of Zhang et al., Treat Visual Tokens as Text, arXiv:2410.06169, told by their angle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from edgekit.errors import UsageError
from edgekit.model import Model, Sample
from edgekit.passes.weights.budget import Costs
from edgekit.passes.weights.cut import Kept
from edgekit.passes.weights.refit import entering
from edgekit.passes.weights.stacks import blocks_of


def similarities(model: Model, samples: Sequence[Sample]) -> np.ndarray:
    """[L]: of each block of a plain Model the mean cosine of a token before and behind it, padding left out (Men et
    al., arXiv:2403.03853, equation 1: one less their block influence)."""
    blocks = blocks_of(model)
    sums, count = np.zeros(len(blocks)), 0
    for state in entering(model, samples):
        for index, block in enumerate(blocks):
            with torch.no_grad():
                behind = state.through(block)
            cosines = functional.cosine_similarity(state.content(state.tokens), state.content(behind.tokens), dim=-1)
            sums[index] += float(cosines.sum())
            count += len(cosines) if index == 0 else 0
            state = behind
    found: np.ndarray = sums / max(1, count)
    return found


def without_similar(cosines: np.ndarray, costs: Costs, share: float) -> tuple[Kept, ...]:
    """Blocks go, the one whose tokens change least first, until `share` of the costs is left.

    Raises UsageError where one block alone costs more, saying what that is.
    """
    kept = [Kept(tuple(range(h)), tuple(range(u))) for h, u in zip(costs.heads, costs.units, strict=True)]
    for index in np.argsort(-cosines, kind="stable")[: len(kept) - 1]:
        if costs.share(kept) <= share + 1e-9:
            break
        kept[int(index)] = Kept((), ())
    if costs.share(kept) > share + 1e-9:
        least = costs.share(kept)
        raise UsageError(
            f"a budget of {share:g} of the encoder cannot be met by leaving out layers, {least:.3f} at least",
            hint=f"ask for a share of {math.ceil(1000 * least) / 1000:g} or more, or --prune-weights vib",
        )
    return tuple(kept)
