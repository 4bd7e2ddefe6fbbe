"""Width by magnitude: a hidden unit is worth its largest absolute weight (Martra, arXiv:2512.22671, section 3), in the
gated feed-forward layers of any module, in plain ones, and in the heads of an encoder's blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import SourceError, UsageError
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.weights.budget import GRANULE, Scores
from edgekit.passes.weights.cut import cut_linear

# What the layers of a feed-forward part are called: those that widen, and the one that narrows. A joint layer holds
# gate and value one after the other.
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
JOINT = (("weights_in", "weights_out"), ("gate_up_proj", "down_proj"))
PLAIN = (("fc1", "fc2"), ("lin1", "lin2"), ("c_fc", "c_proj"), ("wi", "wo"), ("up_proj", "down_proj"))


def maximum_absolute_weight(*layers: Tensor) -> Tensor:
    """[F, C] each -> [F]: the sum over `layers` (gate and value) of each row's largest absolute weight."""
    return torch.stack([layer.detach().abs().amax(1) for layer in layers]).sum(0)


def magnitudes(blocks: Sequence[EncoderBlock]) -> Scores:
    """Of hidden units by their rows of `expand`; of heads by the mean over their rows of value and output."""
    heads, units = [], []
    for block in blocks:
        own = block.attention
        rows = own.value.weight.detach().abs().amax(1) + own.output.weight.detach().abs().amax(0)
        heads.append(rows.reshape(own.heads, -1).mean(1).numpy())
        units.append(maximum_absolute_weight(block.feed_forward.expand.weight).numpy())
    return Scores(tuple(heads), tuple(units), np.full(len(blocks), np.inf))


@dataclass(frozen=True)
class Mlp:
    """A feed-forward part in a module: `path` of what holds its layers, their names, and its hidden units."""

    path: str
    expand: tuple[str, ...]
    contract: str
    units: int
    is_joint: bool = False

    @property
    def is_gated(self) -> bool:
        return self.is_joint or len(self.expand) == 2


def find_mlps(module: nn.Module) -> tuple[Mlp, ...]:
    """Gated and plain feed-forward parts, by the names and the shapes of their layers."""
    return tuple(found for path, child in module.named_modules() for found in _known(path, child))


def _known(path: str, holder: nn.Module) -> Iterator[Mlp]:
    for names, is_joint in (*((names, False) for names in GATED), *((names, True) for names in JOINT)):
        if _fits(holder, names, 2 if is_joint else 1):
            yield Mlp(path, names[:-1], names[-1], getattr(holder, names[-1]).in_features, is_joint)
            return
    for names in PLAIN:
        if _fits(holder, names, 1):
            yield Mlp(path, names[:-1], names[-1], getattr(holder, names[-1]).in_features)
            return


def _fits(holder: nn.Module, names: tuple[str, ...], joined: int) -> bool:
    layers = [layer for name in names if isinstance(layer := getattr(holder, name, None), nn.Linear)]
    if len(layers) < len(names):
        return False
    return all(layer.out_features == joined * layers[-1].in_features for layer in layers[:-1])


def narrow_mlps(module: nn.Module, share: float, name: str = "the module") -> tuple[nn.Module, str]:
    """A copy of `module` whose feed-forward parts have `share` of their hidden units, and what was done.

    Raises SourceError where it has none, UsageError for a share that leaves less than GRANULE units.
    """
    made = copy.deepcopy(module)
    mlps = find_mlps(made)
    if not mlps:
        raise SourceError(
            f"{name} has neither an encoder of a known family nor feed-forward layers of known names",
            hint="--prune-weights none exports it as it is",
        )
    least = max(min(GRANULE, mlp.units) / mlp.units for mlp in mlps)
    if not least <= share <= 1:
        raise UsageError(
            f"a budget of {share:g} of the feed-forward layers cannot be met, {least:.3f} at least",
            hint=f"ask for a share of {math.ceil(1000 * least) / 1000:g} or more",
        )
    ratios = set()
    for mlp in mlps:
        holder = made.get_submodule(mlp.path)
        kept = min(mlp.units, max(GRANULE, math.floor(share * mlp.units / GRANULE) * GRANULE))
        _narrow(holder, mlp, kept)
        ratios.add(f"{kept / getattr(holder, mlp.contract).out_features:.2f}")
    kind = "gated" if all(mlp.is_gated for mlp in mlps) else "plain" if not any(m.is_gated for m in mlps) else "mixed"
    return made, f"{len(mlps)} {kind} feed-forward layers to an expansion of {', '.join(sorted(ratios))}"


def _narrow(holder: nn.Module, mlp: Mlp, kept: int) -> None:
    layers = [getattr(holder, name) for name in mlp.expand]
    halves = layers[0].weight.chunk(2) if mlp.is_joint else tuple(layer.weight for layer in layers)
    best = torch.topk(maximum_absolute_weight(*halves), kept).indices.sort().values
    rows = torch.cat([best, best + mlp.units]) if mlp.is_joint else best
    for name in mlp.expand:
        setattr(holder, name, cut_linear(getattr(holder, name), rows=rows))
    setattr(holder, mlp.contract, cut_linear(getattr(holder, mlp.contract), columns=best))
