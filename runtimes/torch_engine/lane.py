"""Batches through a device: padded to a bucket, copied and computed on streams of their own, replayed as CUDA graphs.

A slot holds one batch on its way: page-locked buffers on the host, buffers on the device, both as long as the largest
bucket. While one slot computes, the next one's inputs go up and the last one's answers come down:

    up      copy slot 0 | copy slot 1 | ...
    work                | run slot 0  | run slot 1 | ...         one graph a bucket, all in order, one memory pool
    down                              | copy 0     | copy 1

A graph reads and writes tensors at fixed addresses, so that a slot's inputs are copied to those on the work stream, and
its outputs from them before the next graph runs. Padding repeats the first row, a value that the model takes.
torch's notes on CUDA semantics: "Use pinned memory buffers", "CUDA Graphs", "Sharing memory across captures".

`Processor` runs the same lane without streams or graphs. The CUDA half has not been run: no GPU was at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgekit.runtimes.torch_engine.buckets import bucket_of
from edgekit.runtimes.torch_engine.runner import Runner
from edgekit.tensors import TensorSpec

logger = logging.getLogger("edgekit")

SLOTS = 2
WARM_RUNS = 3
Replay = Callable[[], Sequence[Tensor]]
# torch's own annotations leave them untyped.
_Stream: Any = torch.cuda.Stream
_Event: Any = torch.cuda.Event


class Engine(Protocol):
    """The streams of one lane. An event is what `mark` returns."""

    device: torch.device
    is_pinned: bool

    def stream(self, name: str) -> AbstractContextManager[Any]:
        """Work inside is queued on the stream `up`, `work` or `down`."""

    def mark(self, name: str) -> Any:
        """An event at the end of what is queued on a stream."""

    def after(self, name: str, event: Any) -> None:
        """What is queued on a stream from now on waits for `event`."""

    def wait(self, event: Any) -> None:
        """Blocks this thread."""

    def settle(self) -> None:
        """Blocks until the device has done all that was queued, on any stream."""

    def capture(self, call: Replay) -> Replay:
        """`call`, to be repeated on the same tensors with its launches recorded."""


class Processor:
    """No streams: everything is done when its call returns."""

    device = torch.device("cpu")
    is_pinned = False

    def stream(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def mark(self, name: str) -> Any:
        return None

    def after(self, name: str, event: Any) -> None:
        return None

    def wait(self, event: Any) -> None:
        return None

    def settle(self) -> None:
        return None

    def capture(self, call: Replay) -> Replay:
        return call


class Gpu:
    """Three streams and a memory pool for the graphs of one lane."""

    is_pinned = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams = {name: _Stream(device) for name in ("up", "work", "down")}
        self._pool = torch.cuda.graph_pool_handle()

    def stream(self, name: str) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[name])

    def mark(self, name: str) -> Any:
        event = _Event()
        event.record(self._streams[name])
        return event

    def after(self, name: str, event: Any) -> None:
        self._streams[name].wait_event(event)

    def wait(self, event: Any) -> None:
        event.synchronize()

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)

    def capture(self, call: Replay) -> Replay:
        """Where the driver or an operator refuses to be captured the calls are made one by one, which is logged."""
        work = self._streams["work"]
        with torch.cuda.stream(work):
            for _ in range(WARM_RUNS):  # kernels compile, libraries take their workspaces: none of it may be captured
                call()
        work.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other models may run meanwhile: only this thread's calls are held to what a capture allows.
            with torch.cuda.graph(graph, pool=self._pool, stream=work, capture_error_mode="thread_local"):
                outputs = call()
        except RuntimeError as error:
            logger.warning("no CUDA graph, the model runs without one: %s", error)
            return call

        def replay() -> Sequence[Tensor]:
            graph.replay()
            return outputs

        return replay


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
        engine: Engine,
    ) -> None:
        self.buckets = tuple(sorted(set(buckets)))
        self._runner, self._engine = runner, engine
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
        """Any number of rows: what the largest bucket does not hold goes in several batches, overlapped."""
        rows, largest = len(arrays[0]), self.buckets[-1]
        starts = range(0, rows, largest) if rows else range(1)
        waiting: list[Slot] = []
        found: list[list[np.ndarray]] = []
        for start in starts:
            if len(waiting) == SLOTS:
                found.append(self.fetch(waiting.pop(0)))
            waiting.append(self.submit([array[start : start + largest] for array in arrays]))
        found += [self.fetch(slot) for slot in waiting]
        if len(found) == 1:
            return found[0]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def submit(self, arrays: Sequence[np.ndarray]) -> Slot:
        """Queues one batch of at most the largest bucket, in the order of the inputs, and returns at once.

        At most SLOTS batches are on their way; each is fetched before its slot comes round again.
        """
        engine, rows = self._engine, len(arrays[0])
        bucket = bucket_of(self.buckets, rows)
        replay = self._replay(bucket)
        slot = self._slots[self._turn]
        assert slot.rows is None, "a batch of this slot was not fetched"
        self._turn = (self._turn + 1) % SLOTS
        for buffer, array in zip(slot.host_in, arrays, strict=True):
            _fill(buffer.numpy()[:bucket], array)
        with engine.stream("up"):
            for there, here in zip(slot.device_in, slot.host_in, strict=True):
                there[:bucket].copy_(here[:bucket], non_blocking=True)
        engine.after("work", engine.mark("up"))
        with engine.stream("work"):
            for fixed, there in zip(self._fixed_in, slot.device_in, strict=True):
                fixed[:bucket].copy_(there[:bucket], non_blocking=True)
            for kept, value in zip(slot.device_out, replay(), strict=True):
                kept[:bucket].copy_(value, non_blocking=True)
        engine.after("down", engine.mark("work"))
        with engine.stream("down"):
            for here, kept in zip(slot.host_out, slot.device_out, strict=True):
                here[:bucket].copy_(kept[:bucket], non_blocking=True)
        slot.rows, slot.arrived = rows, engine.mark("down")
        return slot

    def fetch(self, slot: Slot) -> list[np.ndarray]:
        """Waits for the answers of a batch, which are the caller's to keep, and frees its slot."""
        self._engine.wait(slot.arrived)
        answers = [buffer.numpy()[: slot.rows].copy() for buffer in slot.host_out]
        slot.rows, slot.arrived = None, None
        return answers

    def _replay(self, bucket: int) -> Replay:
        if not self._slots:
            self._allocate()
        if bucket not in self.replays:
            inputs = [value[:bucket] for value in self._fixed_in]
            self.replays[bucket] = self._engine.capture(lambda: self._runner.run(inputs))
        return self.replays[bucket]

    def _allocate(self) -> None:
        """Fixed inputs hold zeros, which tables and masks take, until the first batch."""
        engine = self._engine
        self._fixed_in = self._buffers(self._inputs, engine.device)
        self._slots = [
            Slot(
                self._buffers(self._inputs, None),
                self._buffers(self._inputs, engine.device),
                self._buffers(self._outputs, engine.device),
                self._buffers(self._outputs, None),
            )
            for _ in range(SLOTS)
        ]
        self._turn = 0
        engine.settle()

    def _buffers(self, specs: Sequence[TensorSpec], device: torch.device | None) -> list[Tensor]:
        """On the host where `device` is None."""
        found = []
        for spec in specs:
            shape = (self.buckets[-1], *(int(size) for size in spec.shape[1:]))
            pinned = device is None and self._engine.is_pinned
            found.append(
                torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device or "cpu", pin_memory=pinned)
            )
        return found


def _fill(bucket: np.ndarray, rows: np.ndarray) -> None:
    """`rows` into the first places of `bucket`, the first of them into the rest."""
    bucket[: len(rows)] = rows
    bucket[len(rows) :] = rows[:1] if len(rows) else 0
