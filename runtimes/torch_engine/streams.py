"""Where the work of a lane is queued: three streams of a GPU with CUDA graphs, or the processor, which has neither.

Source: torch's notes on CUDA semantics ("CUDA streams", "Use pinned memory buffers", "CUDA Graphs", "Sharing memory
across captures").
`Gpu` has not been run: no GPU was at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger("edgekit")

WARM_RUNS = 3
Replay = Callable[[], Sequence[Tensor]]
# torch's own annotations leave them untyped.
_Stream: Any = torch.cuda.Stream
_Event: Any = torch.cuda.Event


class Streams(Protocol):
    """Of one lane: `up`, `work` and `down`. An event is what `mark` returns."""

    device: torch.device
    is_pinned: bool

    def stream(self, name: str) -> AbstractContextManager[Any]:
        """Work inside is queued on the stream of that name."""

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
