"""What can be chosen, and how a choice is named and kept."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

NO_METHOD, NO_VARIANT = "none", "whole"
# How a block that goes is chosen in a lattice.
GONE_CHOICE = "|0"


@dataclass(frozen=True)
class Family:
    """The choices that share a lattice. `method`: of token pruning, or none. `variant`: a name of the variants of the
    model (narrower, with an exit), or whole."""

    format: str
    precision: str
    method: str = NO_METHOD
    variant: str = NO_VARIANT

    def __str__(self) -> str:
        parts = [self.format, self.precision]
        parts += [name for name, none in ((self.method, NO_METHOD), (self.variant, NO_VARIANT)) if name != none]
        return " ".join(parts)


@dataclass(frozen=True)
class Configuration:
    """`keep`: tokens behind each block; None where all stay. `floats`: groups of layers (`anatomy`) that stay in
    float under the family's precision. `shape`: by block the heads and hidden units that stay, (0, 0) where the block
    goes (`narrowing`); None where all stay."""

    family: Family
    keep: tuple[int, ...] | None = None
    floats: tuple[str, ...] = ()
    shape: tuple[tuple[int, int], ...] | None = None

    @property
    def prunes(self) -> bool:
        return self.keep is not None or self.shape is not None

    def __str__(self) -> str:
        parts = [self.family.format, self.family.precision]
        if self.floats:
            parts.append(f"but {', '.join(shortened(self.floats))}")
        if self.family.variant != NO_VARIANT:
            parts.append(self.family.variant)
        if self.shape is not None:
            parts.append("width " + "-".join(f"{heads}x{units}" if heads else "0" for heads, units in self.shape))
        if self.keep is not None:
            parts.append(f"{self.family.method} {'-'.join(str(count) for count in self.keep)}")
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.family),
            "keep": None if self.keep is None else list(self.keep),
            "floats": list(self.floats),
            "shape": None if self.shape is None else [list(part) for part in self.shape],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Configuration:
        keep = row["keep"]
        family = Family(row["format"], row["precision"], row["method"], row["variant"])
        shape = row["shape"]
        parts = None if shape is None else tuple((heads, units) for heads, units in shape)
        return cls(family, None if keep is None else tuple(keep), tuple(row["floats"]), parts)


def shortened(groups: tuple[str, ...]) -> list[str]:
    """`block 2 attention`, `block 2 feed-forward` -> `block 2`."""
    whole: dict[str, set[str]] = {}
    for name in groups:
        found = re.fullmatch(r"(block \d+) (attention|feed-forward)", name)
        whole.setdefault(found[1] if found else name, set()).add(found[2] if found else "")
    return [name if len(parts) == 2 or parts == {""} else f"{name} {min(parts)}" for name, parts in whole.items()]
