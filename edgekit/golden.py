"""What of the judged samples goes into a bundle, so that other machines can show that they run it right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.bundle.golden import Arrays, Golden, Pixels, write_golden
from edgekit.bundle.manifest import Preprocess
from edgekit.parity import judged_samples
from edgekit.selection import Packed

MOST_SAMPLES = 8
MOST_BYTES = 1 << 20  # of a part's samples, more than one of them
LARGEST_BYTES = 16 << 20  # of one sample: larger ones are left out
# Two machines may each round in their own way: together they may stray from each other as far as the artifact itself
# strays from the float model, twice the power of it. Float kernels differ in the order of sums alone.
RUNTIMES_DB = 3.0
FLOAT_DB = 40.0


@dataclass(frozen=True)
class GoldenOutcome:
    """`assets`: file -> content."""

    entries: tuple[Golden, ...] = ()
    assets: dict[str, bytes] = field(default_factory=dict)


def gather(packed: Sequence[Packed], preprocess: object) -> GoldenOutcome:
    """Of every part that answered the judged samples where it was built."""
    pixels = preprocess.pixels() if isinstance(preprocess, Preprocess) else None
    entries, assets = [], {}
    for one in packed:
        found = _gather(one, pixels)
        if found is not None:
            entry, content = found
            entries.append(entry)
            assets[entry.file] = content
    return GoldenOutcome(tuple(entries), assets)


def _gather(packed: Packed, pixels: Pixels | None) -> tuple[Golden, bytes] | None:
    built = packed.built
    samples = judged_samples(built.model)
    if not built.answers or built.quality is None:
        return None
    inputs = [{name: value.numpy() for name, value in sample.items()} for sample in samples]
    answers = _by_sample(built.answers, inputs)
    if answers is None:
        return None
    each = sum(array.nbytes for array in (*inputs[0].values(), *answers[0].values()))
    if each > LARGEST_BYTES:
        return None
    count = max(1, min(len(inputs), MOST_SAMPLES, MOST_BYTES // max(1, each)))
    step = len(inputs) // count  # spread, so that not all are of one class
    chosen = [index * step for index in range(count)]
    # Stacking wants one shape; of samples that differ the first is kept.
    if len({tuple(array.shape for array in inputs[index].values()) for index in chosen}) > 1:
        chosen = chosen[:1]
    name = f"golden-{packed.name}.npz"
    least = min(FLOAT_DB, built.quality.sqnr_db - RUNTIMES_DB)
    if not np.isfinite(least):
        return None
    content = write_golden([inputs[index] for index in chosen], [answers[index] for index in chosen], pixels)
    return Golden(part=packed.name, file=name, samples=len(chosen), least_sqnr_db=round(least, 2)), content


def _by_sample(answers: dict[str, np.ndarray], inputs: Sequence[Arrays]) -> list[Arrays] | None:
    """The joined answers taken apart again; None where the samples did not give as many rows each."""
    if any(len(array) % len(inputs) for array in answers.values()):
        return None
    rows = {name: len(array) // len(inputs) for name, array in answers.items()}
    return [
        {name: array[index * rows[name] : (index + 1) * rows[name]] for name, array in answers.items()}
        for index in range(len(inputs))
    ]
