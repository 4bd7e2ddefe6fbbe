"""Progress without a terminal in sight: long work calls `progress(step, done, total)`; the CLI draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def __call__(self, step: str, done: int, total: int) -> None:
        """`done` of `total` units of `step` are finished; `total` 0 where it is not known."""


def silent(step: str, done: int, total: int) -> None:
    pass
