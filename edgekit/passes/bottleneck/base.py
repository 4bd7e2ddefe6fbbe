"""What every bottleneck gives: a head that ends in what is coded, a tail that starts from what is decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgekit.model import Model
from edgekit.progress import Progress, silent


@dataclass(frozen=True)
class Squeezed:
    """`head`'s outputs are the codec's features and `tail`'s inputs, under the same names, float32, batch first.

    `kind` and `tables` make the codec (registry CODECS); `rates` is the length of its ladder, finest first. `detail`:
    one line on what was done. Bytes and quality of each rate are measured by whoever packs it.
    """

    head: Model
    tail: Model
    kind: str
    tables: bytes | None
    rates: int
    detail: str


class Bottleneck(ABC):
    """Subclasses are frozen dataclasses; their fields are the options.

    `head` and `tail` are two stages of one captured Model: the head's outputs are the tail's inputs. Both carry
    calibration and held-out samples (the tail's are the head's answers). `needs_training` ones take `checkpoint`: a
    folder, from which an interrupted run goes on.
    """

    needs_training: ClassVar[bool] = False

    @abstractmethod
    def insert(
        self, head: Model, tail: Model, *, checkpoint: Path | None = None, progress: Progress = silent
    ) -> Squeezed:
        """Leaves `head` and `tail` as they are. Raises DataError for too little calibration data."""
