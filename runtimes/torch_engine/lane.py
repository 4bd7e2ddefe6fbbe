"""Batches through a device: padded to a bucket, copied and computed on streams of their own, replayed as CUDA graphs.

A slot holds one batch on its way: page-locked buffers on the host, buffers on the device, both as long as the largest
bucket. While one slot computes, the next one's inputs go up and the last one's answers come down:

    up      copy slot 0 | copy slot 1 | ...
    work                | run slot 0  | run slot 1 | ...         one graph a bucket, all in order, one memory pool
    down                              | copy 0     | copy 1

A graph reads and writes tensors at fixed addresses, so that a slot's inputs are copied to those on the work stream, and
its outputs from them before the next graph runs. Padding repeats the first row, a value that the model takes.

On the `Processor` a lane runs the same without streams or graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.runtimes.torch_engine.buckets import bucket_of
from edgekit.runtimes.torch_engine.runner import Runner
from edgekit.runtimes.torch_engine.streams import Replay, Streams
from edgekit.tensors import TensorSpec

SLOTS = 2


@dataclass
class Slot:
    """Buffers of one batch. `rows` and `arrived`, the event behind its answers, are None while none is on its way."""

    host_in: list[Tensor]
    device_in: list[Tensor]
    device_out: list[Tensor]
    host_out: list[Tensor]
    rows: int | None = None
    arrived: Any = None


class Lane:
    """Of one runner whose tensors have one open dimension, the first. `replays` counts the captures, by bucket."""

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        buckets: Sequence[int],
        streams: Streams,
    ) -> None:
        self.buckets = tuple(sorted(set(buckets)))
        self._runner, self._streams = runner, streams
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._slots: list[Slot] = []
        self._fixed_in: list[Tensor] = []
        self.replays: dict[int, Replay] = {}
        self._turn = 0

    def prepare(self) -> None:
        """Takes the buffers and captures every bucket, the largest first: the pool then holds what the others need."""
        for bucket in reversed(self.buckets):
            self._replay(bucket)

    def release(self) -> None:
        """Buffers and graphs go; the next batch takes new ones. No batch may be on its way."""
        self._slots, self._fixed_in = [], []
        self.replays.clear()

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Any number of rows: what the largest bucket does not hold goes in several batches, overlapped.

        What the runner raises is raised, and nothing of this call stays on its way.
        """
        return self._overlapped(len(arrays[0]), lambda at: self.submit([array[at] for array in arrays]))

    def run_made(self, rows: int, make: Callable[[slice], Tensor]) -> list[np.ndarray]:
        """Like `run`, of a runner with one input that is made on the device: `make` gives the rows of a slice, and is
        called with the work stream as the current one."""
        return self._overlapped(rows, lambda at: self._submit_made(at, make))

    def _overlapped(self, rows: int, submit: Callable[[slice], Slot]) -> list[np.ndarray]:
        largest = self.buckets[-1]
        batches = [slice(at, min(at + largest, rows)) for at in range(0, rows, largest)] or [slice(0, 0)]
        waiting: list[Slot] = []
        found: list[list[np.ndarray]] = []
        try:
            for at in batches:
                if len(waiting) == SLOTS:
                    found.append(self.fetch(waiting.pop(0)))
                waiting.append(submit(at))
            found += [self.fetch(slot) for slot in waiting]
        except BaseException:
            self._streams.settle()
            self.release()
            raise
        if len(found) == 1:
            return found[0]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def submit(self, arrays: Sequence[np.ndarray]) -> Slot:
        """Queues one batch of at most the largest bucket, in the order of the inputs, and returns at once.

        At most SLOTS batches are on their way; each is fetched before its slot comes round again.
        """
        streams, rows = self._streams, len(arrays[0])
        bucket = bucket_of(self.buckets, rows)
        replay, slot = self._replay(bucket), self._next_slot()
        for buffer, array in zip(slot.host_in, arrays, strict=True):
            _fill(buffer.numpy()[:bucket], array)
        with streams.stream("up"):
            for there, here in zip(slot.device_in, slot.host_in, strict=True):
                there[:bucket].copy_(here[:bucket], non_blocking=True)
        streams.after("work", streams.mark("up"))
        with streams.stream("work"):
            for fixed, there in zip(self._fixed_in, slot.device_in, strict=True):
                fixed[:bucket].copy_(there[:bucket], non_blocking=True)
        return self._compute(slot, rows, bucket, replay)

    def _submit_made(self, at: slice, make: Callable[[slice], Tensor]) -> Slot:
        rows = at.stop - at.start
        bucket = bucket_of(self.buckets, rows)
        replay, slot = self._replay(bucket), self._next_slot()
        with self._streams.stream("work"):
            made, fixed = make(at), self._fixed_in[0]
            fixed[:rows].copy_(made, non_blocking=True)
            if rows:
                fixed[rows:bucket].copy_(made[:1].expand_as(fixed[rows:bucket]), non_blocking=True)
        return self._compute(slot, rows, bucket, replay)

    def _next_slot(self) -> Slot:
        slot = self._slots[self._turn]
        assert slot.rows is None, "a batch of this slot was not fetched"
        self._turn = (self._turn + 1) % SLOTS
        return slot

    def _compute(self, slot: Slot, rows: int, bucket: int, replay: Replay) -> Slot:
        """On what lies in the fixed inputs by then."""
        streams = self._streams
        with streams.stream("work"):
            for kept, value in zip(slot.device_out, replay(), strict=True):
                kept[:bucket].copy_(value, non_blocking=True)
        streams.after("down", streams.mark("work"))
        with streams.stream("down"):
            for here, kept in zip(slot.host_out, slot.device_out, strict=True):
                here[:bucket].copy_(kept[:bucket], non_blocking=True)
        slot.rows, slot.arrived = rows, streams.mark("down")
        return slot

    def fetch(self, slot: Slot) -> list[np.ndarray]:
        """Waits for the answers of a batch, which are the caller's to keep, and frees its slot."""
        self._streams.wait(slot.arrived)
        answers = [buffer.numpy()[: slot.rows].copy() for buffer in slot.host_out]
        slot.rows, slot.arrived = None, None
        return answers

    def _replay(self, bucket: int) -> Replay:
        if not self._slots:
            self._allocate()
        if bucket not in self.replays:
            inputs = [value[:bucket] for value in self._fixed_in]
            self.replays[bucket] = self._streams.capture(lambda: self._runner.run(inputs))
        return self.replays[bucket]

    def _allocate(self) -> None:
        """Fixed inputs hold zeros, which tables and masks take, until the first batch."""
        streams = self._streams
        self._fixed_in = self._buffers(self._inputs, streams.device)
        self._slots = [
            Slot(
                self._buffers(self._inputs, None),
                self._buffers(self._inputs, streams.device),
                self._buffers(self._outputs, streams.device),
                self._buffers(self._outputs, None),
            )
            for _ in range(SLOTS)
        ]
        self._turn = 0
        streams.settle()

    def _buffers(self, specs: Sequence[TensorSpec], device: torch.device | None) -> list[Tensor]:
        """On the host where `device` is None."""
        found = []
        for spec in specs:
            shape = (self.buckets[-1], *(int(size) for size in spec.shape[1:]))
            pinned = device is None and self._streams.is_pinned
            found.append(
                torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device or "cpu", pin_memory=pinned)
            )
        return found


def _fill(bucket: np.ndarray, rows: np.ndarray) -> None:
    """`rows` into the first places of `bucket`, the first of them into the rest."""
    bucket[: len(rows)] = rows
    bucket[len(rows) :] = rows[:1] if len(rows) else 0
