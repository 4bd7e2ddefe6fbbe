"""The state of an iterated model: one slot for each running request, in arrays that are made once.

A step gathers the rows of the requests that take part, runs them as one batch and scatters what they became; nothing is
concatenated and nothing moves when a request comes or goes (Flover's temporal fusion, Yao et al., arXiv:2305.13484;
Orca's iteration-level scheduling, Yu et al., OSDI 2022).

A batch must not change its rows' numbers. Kernels choose their order of summation by the number of rows, and scales
found at run time (int8-dynamic) look at all rows at once, so a model is probed before it is served (`probe`): rows that
only mind how many they are get company from empty ones, rows that mind each other run one by one. Run on the CPU with
ONNX Runtime, LiteRT, ExecuTorch and torch; not on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.loop import Choice, Loop
from edgekit.errors import SessionError
from edgekit.tensors import DTYPES, TensorSpec

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]

EACH = 16  # up to so many rows each number is probed, beyond it the powers of two
LOUD = 1e3  # times as large are the other rows in the probe for rows that mind each other


@dataclass(frozen=True)
class Rows:
    """How many rows a run has: at least `least`, at most `most`, both the caller's rows and empty ones."""

    least: int = 1
    most: int | None = None

    def sizes(self, count: int) -> list[int]:
        """`count` rows as runs of so many."""
        most = self.most or max(count, 1)
        return [min(most, count - start) for start in range(0, count, most)]

    def padded(self, rows: int) -> int:
        return max(rows, self.least)


class Slots:
    """`count` requests at once. `run` takes any number of rows, or the one that `inputs` state."""

    def __init__(
        self, run: Run, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], loop: Loop, count: int
    ) -> None:
        self.count, self.loop = count, loop
        self._run, self._carried = run, {entry.input: entry for entry in loop.carried}
        specs = {spec.name: spec for spec in inputs}
        self._fed = specs[loop.feed.input]
        self.results = tuple(spec for spec in outputs if spec.name not in {entry.output for entry in loop.carried})
        self.choices = _choices(loop, outputs)
        # One more than can be taken: the empty rows' own, which stays zero.
        self._state = {name: _zeros(specs[name], count + 1, entry.batch_axis) for name, entry in self._carried.items()}
        self._staging = {name: np.empty(array.size, array.dtype) for name, array in self._state.items()}
        self._free = list(range(count - 1, -1, -1))
        fixed = self._fed.shape[0]
        self.rows = Rows(fixed, fixed) if isinstance(fixed, int) else self.probe()
        self.feed = _zeros(self._fed, count + self.rows.least, 0)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A slot whose state is zero."""
        slot = self._free.pop()
        for name, entry in self._carried.items():
            np.moveaxis(self._state[name], entry.batch_axis, 0)[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def step(self, slots: Sequence[int]) -> dict[str, np.ndarray]:
        """The next step of each of `slots`, fed with the first rows of `feed`; what is not carried, row by row.

        Raises SessionError; the state is then what it was.
        """
        sizes, done, at = self.rows.sizes(len(slots)), [], 0
        for size in sizes:
            done.append(self._batch(slots[at : at + size], at))
            at += size
        # All of them ran: only now does anything change.
        at = 0
        for outputs, size in zip(done, sizes, strict=True):
            index = np.asarray(slots[at : at + size])
            for name, entry in self._carried.items():
                after = np.moveaxis(outputs[entry.output], entry.batch_axis, 0)
                np.moveaxis(self._state[name], entry.batch_axis, 0)[index] = after[:size]
            at += size
        if len(done) == 1:
            return {spec.name: done[0][spec.name][: sizes[0]] for spec in self.results}
        return {
            spec.name: np.concatenate([outputs[spec.name][:size] for outputs, size in zip(done, sizes, strict=True)])
            for spec in self.results
        }

    def _batch(self, slots: Sequence[int], at: int) -> Arrays:
        """Rows `at` and following of `feed`, the state of `slots`, and as many empty rows as the model wants."""
        rows = self.rows.padded(len(slots))
        index = np.full(rows, self.count)
        index[: len(slots)] = slots
        self.feed[at + len(slots) : at + rows] = 0
        feeds = {self._fed.name: self.feed[at : at + rows]}
        for name, entry in self._carried.items():
            state, axis = self._state[name], entry.batch_axis
            staged = self._staged(name, (*state.shape[:axis], rows, *state.shape[axis + 1 :]))
            np.take(state, index, axis=axis, out=staged, mode="clip")
            feeds[name] = staged
        outputs = self._run(feeds)
        for spec in self.results:
            if len(outputs[spec.name]) != rows:
                raise SessionError(f"the output {spec.name!r} has {len(outputs[spec.name])} rows for {rows}")
        return outputs

    def _staged(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Room for a gathered state, the same for every step."""
        size = math.prod(shape)
        if self._staging[name].size < size:
            self._staging[name] = np.empty(size, self._staging[name].dtype)
        return self._staging[name][:size].reshape(shape)

    def probe(self) -> Rows:
        """Runs random rows in companies of several sizes and compares bits. A runtime that planned its memory for fewer
        rows than there are slots says so by failing, and is then asked for fewer. Raises SessionError where one row
        fails."""
        most = max(2, self.count)
        while True:
            try:
                rows = self._probe(most)
            except SessionError:
                if most == 1:
                    raise
                most //= 2
            else:
                return rows if rows.most is not None or most >= self.count else Rows(rows.least, most)

    def _probe(self, most: int) -> Rows:
        axes = {self._fed.name: 0} | {name: entry.batch_axis for name, entry in self._carried.items()}
        feeds, order = self._random_rows(most), np.r_[1:most, 0]
        loud = {
            name: array if array.dtype.kind != "f" else array * array.dtype.type(LOUD) for name, array in feeds.items()
        }
        mixed = {
            name: np.concatenate([_rows(feeds[name], [0], axis), _rows(loud[name], order[:-1], axis)], axis)
            for name, axis in axes.items()
        }
        moved = {name: _rows(feeds[name], order, axis) for name, axis in axes.items()}
        whole = self._observe(feeds)
        if not _same(self._observe(moved), whole[order]) or not _same(self._observe(mixed)[:1], whole[:1]):
            return Rows(1, 1)
        least = most
        for rows in _sizes_below(most):
            few = {name: _rows(feeds[name], np.arange(rows), axis) for name, axis in axes.items()}
            if not _same(self._observe(few), whole[:rows]):
                break
            least = rows
        return Rows(least)

    def _random_rows(self, count: int) -> dict[str, np.ndarray]:
        """What `count` requests might feed in the middle of their sequences, the same each time."""
        generator = np.random.default_rng(0)
        empty = _zeros(self._fed, count, 0)
        feeds = {self._fed.name: self._draw(generator, empty.shape, empty.dtype)}
        for name, entry in self._carried.items():
            shape = list(self._state[name].shape)
            shape[entry.batch_axis] = count
            feeds[name] = (0.5 * generator.standard_normal(shape)).astype(self._state[name].dtype)
        return feeds

    def _observe(self, feeds: Arrays) -> np.ndarray:
        """All outputs of a run, one row of bytes for each row."""
        outputs = self._run({name: np.ascontiguousarray(array) for name, array in feeds.items()})
        axes = {entry.output: entry.batch_axis for entry in self._carried.values()}
        flat = []
        for name, array in outputs.items():
            moved = np.ascontiguousarray(np.moveaxis(array, axes.get(name, 0), 0))
            flat.append(moved.reshape(len(moved), -1).view(np.uint8))
        return np.concatenate(flat, axis=1)

    def _draw(self, generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if dtype.kind == "f":
            return generator.standard_normal(shape).astype(dtype)
        return generator.integers(0, self.choices, shape).astype(dtype)


def _sizes_below(most: int) -> list[int]:
    """The largest first."""
    powers = {1 << bits for bits in range(most.bit_length())}
    return sorted((size for size in {*range(1, EACH + 1), *powers} if size < most), reverse=True)


def _zeros(spec: TensorSpec, rows: int, axis: int) -> np.ndarray:
    rest = [size for dim, size in enumerate(spec.shape) if dim != axis]
    shape = [size for size in rest if isinstance(size, int)]
    if len(shape) < len(rest):
        raise SessionError(f"the input {spec.name!r} of a step has the shape {list(spec.shape)}, allowed a fixed one")
    shape.insert(axis, rows)
    return np.zeros(shape, DTYPES[spec.dtype])


def _choices(loop: Loop, outputs: Sequence[TensorSpec]) -> int:
    """The size of the vocabulary; 2 where nothing is chosen."""
    if not isinstance(loop.feed, Choice):
        return 2
    size = next(spec for spec in outputs if spec.name == loop.feed.output).shape[-1]
    if not isinstance(size, int):
        raise SessionError(f"the output {loop.feed.output!r} has no fixed number of choices: {size}")
    return size


def _rows(array: np.ndarray, index: Sequence[int] | np.ndarray, axis: int) -> np.ndarray:
    return np.take(array, np.asarray(index), axis=axis)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other))
