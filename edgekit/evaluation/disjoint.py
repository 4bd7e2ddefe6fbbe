"""Calibration and evaluation data may share nothing: told by content, whatever the files are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgekit.errors import DataError


def digest_sample(sample: Any) -> str:
    """sha256 of a text, bytes, an array (its dtype, shape and values; a tensor will do), or a mapping of these."""
    sha = hashlib.sha256()
    if isinstance(sample, Mapping):
        for name, value in sorted(sample.items()):
            sha.update(f"{name}={digest_sample(value)}\n".encode())
    elif isinstance(sample, str | bytes):
        sha.update(sample.encode() if isinstance(sample, str) else sample)
    else:
        array = np.ascontiguousarray(sample)
        if array.dtype == object:
            raise DataError(f"a sample is a {type(sample).__name__}, allowed text, bytes, arrays and mappings of these")
        sha.update(f"{array.dtype}:{array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def check_disjoint(calibration: Iterable[Any], evaluation: Iterable[Any]) -> None:
    """No sample (what `digest_sample` takes) of the one is in the other, byte for byte.

    Raises DataError that says how many are, and the places of the first.
    """
    known: dict[str, int] = {}
    for place, sample in enumerate(calibration):
        known.setdefault(digest_sample(sample), place)
    shared = [(known[digest], place) for place, digest in enumerate(map(digest_sample, evaluation)) if digest in known]
    if shared:
        first, second = shared[0]
        raise DataError(
            f"{len(shared)} evaluation samples are calibration samples too (the first: evaluation {second} is "
            f"calibration {first}), allowed none",
            hint="leave them out of one of the two sets: a model is judged on what it was not fitted to",
        )
