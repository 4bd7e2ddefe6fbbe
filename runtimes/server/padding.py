"""Requests of different lengths in one batch: the shorter ones are filled up with zeros that the model's mask hides.

Whether that changes an answer is not believed but tried, on the model itself, when it is opened: quantization at run
time, for one, looks at the zeros too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.tensors import DTYPES, TensorSpec

logger = logging.getLogger("edgekit")

Arrays = Mapping[str, np.ndarray]

TRIED = (3, 8)  # lengths
TOLERANCE = 1e-4  # of the largest value of an output: float32 sums in another order


@dataclass(frozen=True)
class Padding:
    """`inputs` and `outputs`: name -> the axis whose length is open; an output without one has none."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def length(self, feeds: Arrays) -> int:
        name, axis = next(iter(self.inputs.items()))
        length: int = feeds[name].shape[axis]
        return length

    def kind(self, feeds: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What must agree for two requests to run as one: everything but the first axis, and of the length its size,
        so that none is filled up by more than half."""
        return tuple(
            (name, tuple(_size(n) if at == self.inputs.get(name) else n for at, n in enumerate(array.shape) if at))
            for name, array in feeds.items()
        )

    def join(self, many: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """Along the first axis, each as long as the longest."""
        longest, rows = max(map(self.length, many)), sum(len(next(iter(feeds.values()))) for feeds in many)
        joined = {}
        for name, first in many[0].items():
            axis = self.inputs.get(name)
            if axis is None:
                joined[name] = np.concatenate([feeds[name] for feeds in many])
                continue
            shape = [rows, *first.shape[1:]]
            shape[axis] = longest
            whole, at = np.zeros(shape, first.dtype), 0
            for feeds in many:
                array = feeds[name]
                place = [slice(at, at + len(array)), *(slice(0, size) for size in array.shape[1:])]
                whole[tuple(place)] = array
                at += len(array)
            joined[name] = whole
        return joined

    def cut(self, name: str, rows: np.ndarray, feeds: Arrays) -> np.ndarray:
        """An answer's own length of the output `name`."""
        axis = self.outputs.get(name)
        return rows if axis is None else rows[(slice(None),) * axis + (slice(0, self.length(feeds)),)]


def _size(length: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, ..: the next of two in an octave."""
    octave = 1 << (length - 1).bit_length() if length > 1 else 1
    return 3 * octave // 4 if octave >= 4 and length <= 3 * octave // 4 else octave


def find_padding(
    run: Callable[[Arrays], Arrays], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Padding | None:
    """How requests of different lengths may share a batch of this model; None where its tensors have no open length
    and a mask for it, or where filling up changes an answer, which is logged."""
    padding = _open_axes(inputs, outputs)
    if padding is None:
        return None
    samples = [_sample(inputs, padding, length) for length in TRIED]
    try:
        together = run(padding.join(samples))
        alone = [run(sample) for sample in samples]
    except EdgekitError as error:
        logger.warning("requests of different lengths run apart: trying them together failed: %s", error.message)
        return None
    worst = 0.0
    for number, (sample, answer) in enumerate(zip(samples, alone, strict=True)):
        for name, wanted in answer.items():
            got = padding.cut(name, together[name][number : number + 1], sample)
            if got.shape != wanted.shape:
                return None
            scale = float(np.abs(wanted).max(initial=1e-30))
            worst = max(worst, float(np.abs(got.astype(np.float64) - wanted).max(initial=0.0)) / scale)
    if not worst <= TOLERANCE:
        logger.info("requests of different lengths run apart: together they differ by %.2g of the largest value", worst)
        return None
    return padding


def _open_axes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Padding | None:
    """Where one length is open in every input that has one, the first axis apart, and a mask is among them."""
    found = {spec.name: [at for at, size in enumerate(spec.shape) if at and isinstance(size, str)] for spec in inputs}
    names = {spec.shape[at] for spec in inputs for at in found[spec.name]}
    masked = any("mask" in spec.name and found[spec.name] for spec in inputs)
    if len(names) != 1 or not masked or any(len(axes) > 1 for axes in found.values()):
        return None
    follows = {spec.name: [at for at, size in enumerate(spec.shape) if at and size in names] for spec in outputs}
    if any(len(axes) > 1 for axes in follows.values()):
        return None
    return Padding(*({name: axes[0] for name, axes in each.items() if axes} for each in (found, follows)))


def _sample(inputs: Sequence[TensorSpec], padding: Padding, length: int) -> dict[str, np.ndarray]:
    """One row: small indices, a mask of ones, one token type."""
    generator, feeds = np.random.default_rng(length), {}
    for spec in inputs:
        shape = [1, *(length if at == padding.inputs.get(spec.name) else n for at, n in enumerate(spec.shape) if at)]
        sizes = [int(size) for size in shape]
        dtype = DTYPES[spec.dtype]
        if "mask" in spec.name:
            feeds[spec.name] = np.ones(sizes, dtype)
        elif "type" in spec.name:
            feeds[spec.name] = np.zeros(sizes, dtype)
        elif dtype.kind in "iu":
            feeds[spec.name] = generator.integers(1, 10, sizes).astype(dtype)
        else:
            feeds[spec.name] = generator.standard_normal(sizes).astype(dtype)
    return feeds
