"""A variant with exits on the device: each sample goes as deep as its confidence asks and its schedule allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgekit.bundle.manifest import Exit, Manifest, Part, Variant
from edgekit.planning.exits import Allowance, Schedule
from edgekit.runtimes.coordinator.confidence import confidence
from edgekit.runtimes.session import Feeds

Arrays = dict[str, np.ndarray]
# (part, everything known by name, what the part below gave) -> what it gives
RunPart = Callable[[Part, Arrays, Arrays], Arrays]


@dataclass(frozen=True)
class LocalResult:
    """`left`: how many samples left at each exit, the end last; empty for a variant without exits. `sure`: the least
    confidence of those that left early. `held_back`: how many the schedule kept from going on."""

    outputs: Arrays
    left: tuple[int, ...] = ()
    sure: float | None = None
    held_back: int = 0

    @property
    def exited(self) -> bool:
        """All of them left before the end."""
        return bool(self.left) and self.left[-1] == 0


@dataclass
class Ladder:
    """The exits of `variant`, and what its schedule still allows."""

    manifest: Manifest
    variant: Variant
    run_part: RunPart
    allowance: Allowance | None = field(init=False)

    def __post_init__(self) -> None:
        parts = [self.manifest.part(name) for name in self.variant.parts]
        entries = [*parts[0].inputs, *parts[-1].outputs]
        self._is_batchable = all(entry.shape and isinstance(entry.shape[0], str) for entry in entries)
        self.allowance = Allowance(Schedule(self.variant.shares)) if self.variant.shares else None

    def run(self, feeds: Feeds) -> LocalResult:
        """Samples of a batch leave one by one; where the batch is fixed they leave together, with the least sure."""
        count = len(next(iter(feeds.values()))) if self._is_batchable else 1
        rows, left, sures, held_back = np.arange(count), [], [], 0
        values: Arrays = dict(feeds)
        last: Arrays = {}
        outputs: Arrays = {}
        window = self.allowance.enter() if self.allowance is not None and count == 1 else []
        names = [entry.name for entry in self.manifest.part(self.variant.parts[-1]).outputs]
        for index, name in enumerate(self.variant.parts):
            last = self.run_part(self.manifest.part(name), values, last)
            values |= last
            if index == len(self.variant.exits):
                _put(outputs, names, last, rows, count if self._is_batchable else None)
                left.append(len(rows))
                break
            exit = self.variant.exits[index]
            early = self.run_part(self.manifest.part(exit.part), values, last)
            sure = self._sure(exit, early)
            wants = sure < exit.threshold
            goes = self._admitted(wants, sure, index, count, window)
            held_back += int(wants.sum() - goes.sum())
            left.append(int((~goes).sum()))
            if left[-1]:
                sures.append(float(sure[~goes].min()))
                _put(outputs, names, _rows(early, ~goes), rows[~goes], count if self._is_batchable else None)
            if not goes.any():
                left += [0] * (len(self.variant.exits) - index)
                break
            if not goes.all():
                rows, values, last = rows[goes], _rows(values, goes), _rows(last, goes)
        return LocalResult(outputs, tuple(left), min(sures, default=None), held_back)

    def _sure(self, exit: Exit, outputs: Arrays) -> np.ndarray:
        """[samples], or [1] where they leave together."""
        post = self.manifest.postprocess
        name = post.output if post is not None and post.output in outputs else next(iter(outputs))
        sure = np.atleast_1d(confidence(outputs[name], exit.temperature))
        return sure if self._is_batchable else sure.min(keepdims=True)

    def _admitted(self, wants: np.ndarray, sure: np.ndarray, index: int, count: int, window: list[int]) -> np.ndarray:
        if self.allowance is None or not wants.any():
            return wants
        if count == 1:
            return wants if self.allowance.may_go_on(window, index) else np.zeros(1, bool)
        goes = wants.copy()
        goes[wants] = self.allowance.schedule.going_on(sure[wants], index, count)
        return goes


def _rows(arrays: Mapping[str, np.ndarray], kept: np.ndarray) -> Arrays:
    """`kept` [samples]; all of an array where the samples stay together."""
    return {name: array[kept] if len(array) == len(kept) else array for name, array in arrays.items()}


def _put(outputs: Arrays, names: list[str], found: Arrays, rows: np.ndarray, count: int | None) -> None:
    """`found` at `rows` of `outputs`, by place: an exit may call its outputs otherwise."""
    for name, array in zip(names, found.values(), strict=True):
        if count is None:
            outputs[name] = array
        else:
            outputs.setdefault(name, np.empty((count, *array.shape[1:]), array.dtype))[rows] = array
