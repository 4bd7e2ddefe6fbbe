"""Golden answers: a few inputs of each part, what it answered where it was built, and how close another machine must
come. A device shows with them that it runs the bundle right.

The file is an .npz with `in.<name>` and `out.<name>`, samples stacked along a new first axis. Images that were made of
whole pixels are kept as those (`pixels`), a quarter of the size.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field

from edgekit.bundle.strict import Strict
from edgekit.errors import BundleError

if TYPE_CHECKING:
    import numpy as np

Arrays: TypeAlias = "dict[str, np.ndarray]"

INPUT, OUTPUT, PIXELS = "in.", "out.", "px."


class Golden(Strict):
    """Of one part. `least_sqnr_db`: of its answers on another machine against those in the asset `file`."""

    part: str
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    samples: int = Field(ge=1, le=64)
    least_sqnr_db: float


@dataclass(frozen=True)
class Pixels:
    """`mean` and `std` of the manifest's preprocess, and the axis of the channels, -1 for grey without one."""

    mean: Sequence[float]
    std: Sequence[float]
    channels: int

    def normal(self, pixels: np.ndarray) -> np.ndarray:
        import numpy as np  # by who computes, not by who reads a manifest

        shape = [1] * pixels.ndim
        shape[self.channels] = len(self.mean)
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) - mean) / std

    def pixels(self, normal: np.ndarray) -> np.ndarray | None:
        """None where these are no images of so many channels, or some value was no whole pixel."""
        import numpy as np

        if normal.ndim < 3 or normal.shape[self.channels] != len(self.mean) or not np.isfinite(normal).all():
            return None
        shape = [1] * normal.ndim
        shape[self.channels] = len(self.mean)
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        found = np.rint(normal * std + mean)
        if found.min() < 0 or found.max() > 255:
            return None
        made = found.astype(np.uint8)
        return made if np.array_equal(self.normal(made), normal) else None


def write_golden(inputs: Sequence[Arrays], answers: Sequence[Arrays], pixels: Pixels | None = None) -> bytes:
    """The asset. The same arrays give the same bytes."""
    import numpy as np

    stored: Arrays = {}
    for name in inputs[0]:
        stacked = np.stack([sample[name] for sample in inputs])
        whole = pixels.pixels(stacked) if pixels is not None and stacked.dtype == np.float32 else None
        stored[(PIXELS if whole is not None else INPUT) + name] = stacked if whole is None else whole
    for name in answers[0]:
        stored[OUTPUT + name] = np.stack([answer[name] for answer in answers])
    stream = io.BytesIO()
    np.savez(stream, **stored)  # type: ignore[arg-type]
    return stream.getvalue()


def read_golden(data: bytes, pixels: Pixels | None = None) -> tuple[list[Arrays], list[Arrays]]:
    """(inputs, answers), one of each a sample. Raises BundleError."""
    import numpy as np

    if not data.startswith(b"PK"):  # numpy would take it for a pickle, and say how to load that all the same
        raise BundleError("golden answers cannot be read: they are no .npz", hint="export the bundle again")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"golden answers cannot be read: {error}", hint="export the bundle again") from error
    inputs: Arrays = {}
    for name, array in stored.items():
        if name.startswith(INPUT):
            inputs[name.removeprefix(INPUT)] = array
        elif name.startswith(PIXELS):
            if pixels is None:
                raise BundleError("golden images without a preprocess", hint="export the bundle again")
            inputs[name.removeprefix(PIXELS)] = pixels.normal(array)
    answers = {name.removeprefix(OUTPUT): array for name, array in stored.items() if name.startswith(OUTPUT)}
    counts = {len(array) for array in (*inputs.values(), *answers.values())}
    if not inputs or not answers or len(counts) != 1:
        raise BundleError("golden answers hold no samples", hint="export the bundle again")
    count = counts.pop()
    return _samples(inputs, count), _samples(answers, count)


def _samples(stacked: Arrays, count: int) -> list[Arrays]:
    return [{name: array[index] for name, array in stacked.items()} for index in range(count)]


def closeness_db(wanted: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> float:
    """SQNR of the worst output; whole numbers must be equal. -inf for other names, shapes or values that are none."""
    import numpy as np

    worst = math.inf
    for name, reference in wanted.items():
        answer = got.get(name)
        if answer is None or answer.shape != reference.shape:
            return -math.inf
        if not np.issubdtype(reference.dtype, np.floating):
            if not np.array_equal(answer, reference):
                return -math.inf
            continue
        if not np.isfinite(answer).all():
            return -math.inf
        noise = float(np.square(reference.astype(np.float64) - answer.astype(np.float64)).sum())
        signal = float(np.square(reference.astype(np.float64)).sum())
        if noise > 0:
            worst = min(worst, 10 * math.log10(signal / noise) if signal > 0 else -math.inf)
    return worst
