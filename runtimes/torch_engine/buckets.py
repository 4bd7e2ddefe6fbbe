"""Batch sizes that get a graph of their own: powers of two, so that padding at most doubles the work."""

from __future__ import annotations

from edgekit.errors import UsageError


def buckets_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4 ... and `most` itself. Raises UsageError below 1."""
    if most < 1:
        raise UsageError(f"batches of {most}, allowed 1 and more")
    powers = [1 << place for place in range(most.bit_length()) if 1 << place < most]
    return (*powers, most)


def bucket_of(buckets: tuple[int, ...], rows: int) -> int:
    """The smallest of `buckets`, which ascend, that holds `rows`; the largest has to."""
    return next(size for size in buckets if size >= rows)
