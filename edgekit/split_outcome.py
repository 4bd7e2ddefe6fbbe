"""What splitting adds to a bundle: parts for each tier, codecs with their tables, variants, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.bundle.manifest import Codec, Variant
from edgekit.report.model import InformationPoint, SplitRow
from edgekit.selection import Packed


@dataclass(frozen=True)
class SplitOutcome:
    """`tables`: asset file -> content. `notes`: what was left out, and why. Outcomes add up."""

    packed: tuple[Packed, ...] = ()
    codecs: tuple[Codec, ...] = ()
    tables: dict[str, bytes] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    rows: tuple[SplitRow, ...] = ()
    information: tuple[InformationPoint, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: SplitOutcome) -> SplitOutcome:
        return SplitOutcome(
            self.packed + other.packed,
            self.codecs + other.codecs,
            self.tables | other.tables,
            self.variants + other.variants,
            self.rows + other.rows,
            self.information + other.information,
            self.notes + other.notes,
        )
