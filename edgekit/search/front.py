"""What no other beats in everything that counts: points lost, latency and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

AXES = ("drop", "latency_ms", "size_bytes")


class _HasFigures(Protocol):
    @property
    def figures(self) -> object: ...


One = TypeVar("One", bound=_HasFigures)


def nondominated(rows: Sequence[One], axes: Sequence[str] = AXES) -> list[One]:
    """Fastest first; of equals the first."""
    points = [tuple(_figures(row)[axis] for axis in axes) for row in rows]
    kept = [
        row
        for index, (row, point) in enumerate(zip(rows, points, strict=True))
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and (other != point or place < index)
            for place, other in enumerate(points)
            if place != index
        )
    ]
    return sorted(kept, key=lambda row: _figures(row)["latency_ms"])


def _figures(row: _HasFigures) -> Mapping[str, float]:
    found = row.figures
    values: Mapping[str, float] = found() if callable(found) else found  # type: ignore[assignment]
    return values
