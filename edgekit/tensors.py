"""What a tensor looks like at the boundary of a model: name, dtype, shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    DTYPES: dict[str, np.dtype]

NAMES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def __getattr__(name: str) -> Any:
    """`DTYPES`: numpy is imported by who computes, not by who reads a manifest."""
    if name == "DTYPES":
        return _dtypes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _dtypes() -> dict[str, np.dtype]:
    import numpy as np

    return {name: np.dtype(name) for name in NAMES}


Shape = tuple[int | str, ...]


def shares_batch(shapes: Iterable[Shape]) -> bool:
    """Whether every tensor's first axis is one and the same dynamic dimension: requests can be joined along it."""
    first = {shape[0] if shape else 1 for shape in shapes}
    return len(first) == 1 and isinstance(next(iter(first)), str)


@dataclass(frozen=True)
class TensorSpec:
    """`shape` holds an int for a fixed dimension and a name (str) for a dynamic one."""

    name: str
    dtype: str
    shape: Shape

    @property
    def is_static(self) -> bool:
        return all(isinstance(size, int) for size in self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes with every dynamic dimension taken as 1."""
        return _dtypes()[self.dtype].itemsize * math.prod(s if isinstance(s, int) else 1 for s in self.shape)

    def mismatch(self, array: np.ndarray) -> str | None:
        """Why `array` does not fit, or None where it does."""
        if array.dtype != _dtypes()[self.dtype]:
            return f"dtype {array.dtype}, allowed {self.dtype}"
        if len(array.shape) != len(self.shape) or any(
            isinstance(want, int) and want != got for want, got in zip(self.shape, array.shape, strict=True)
        ):
            return f"shape {list(array.shape)}, allowed {list(self.shape)}"
        return None
