"""What every quantizer obeys: it is a pass whose result carries a Quantization record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgekit.errors import DataError
from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.quantization import Scheme


@dataclass(frozen=True)
class Quantizer(Pass):
    """`scheme`: how the target wants its integers. `keep`: names of graph nodes that stay float, and why.

    `reads_scheme`: False where the result is the same in each.
    """

    scheme: Scheme
    keep: tuple[tuple[str, str], ...] = ()

    method: ClassVar[str]
    needs_calibration: ClassVar[bool] = False
    reads_scheme: ClassVar[bool] = True

    def requires(self, model: Model) -> None:
        _ = model.graph
        if self.needs_calibration and not model.calibration:
            raise DataError(
                f"{self.method} needs calibration data, got none",
                hint="--calibration DIR with some hundred typical inputs, or --quantize int8-dynamic",
            )
