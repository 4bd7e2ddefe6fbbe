"""A part that is one step of an iteration, served: requests bring what is fed, the node carries the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.bundle.loop import Choice, Chunks, Loop
from edgekit.errors import InputError
from edgekit.runtimes.protocol.asking import Asking
from edgekit.runtimes.server.iteration import IterationOptions, Iterations, Observe
from edgekit.runtimes.server.media import TEXT
from edgekit.runtimes.server.ongoing import Ongoing
from edgekit.runtimes.server.schedule import Tenant
from edgekit.runtimes.server.sequences import Generation, Iterated, Recording
from edgekit.runtimes.server.slots import Slots
from edgekit.tensors import DTYPES, TensorSpec


class Looped:
    """`run` is its own: the steps are made in a thread of their own. `observe` is told of each step."""

    def __init__(
        self,
        name: str,
        loop: Loop,
        run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: IterationOptions,
        tenants: Sequence[Tenant] = (),
        observe: Observe | None = None,
    ) -> None:
        """Raises SessionError where the model does not run, or its shapes are open."""
        self.name, self.loop, self.options = name, loop, options
        self._fed = next(spec for spec in inputs if spec.name == loop.feed.input)
        self._slots = Slots(run, inputs, outputs, loop, options.slots)
        self.rows = self._slots.rows
        self._symbols = self._slots.choices
        self._iterations = Iterations(name, self._slots, options, tenants, observe)

    @property
    def depth(self) -> int:
        return self._iterations.depth

    @property
    def is_idle(self) -> bool:
        return self._iterations.is_idle

    @property
    def takes_text(self) -> bool:
        return isinstance(self.loop.feed, Choice) and self.loop.feed.encoding == "bytes"

    def reads(self, tensors: Mapping[str, np.ndarray]) -> bool:
        """Whether a request is for the iteration, and not for one step with a state of the caller's own."""
        return set(tensors) == {self._fed.name} or (self.takes_text and set(tensors) == {TEXT})

    @property
    def max_steps(self) -> int:
        """Of one request: the model's, and for what is generated the node's."""
        least = min(self.loop.max_steps, self.options.max_steps)
        return self.loop.max_steps if isinstance(self.loop.feed, Chunks) else least

    def submit(
        self, tensors: Mapping[str, np.ndarray], asking: Asking, deadline: float = math.inf, tenant: str = ""
    ) -> Ongoing:
        """Raises InputError, QueueFullError, QuotaError, UnreachableError."""
        return self._iterations.submit(self._sequence(tensors, asking), deadline, tenant)

    def _sequence(self, tensors: Mapping[str, np.ndarray], asking: Asking) -> Iterated:
        feed = self.loop.feed
        if isinstance(feed, Chunks):
            return self._recording(feed, tensors[feed.input], asking)
        prompt = _bytes_of(tensors[TEXT]) if TEXT in tensors else self._prompt(tensors[feed.input])
        most = self.loop.max_steps - len(prompt) - (feed.start is not None)
        if most < 1:
            raise InputError(
                f"{self.name}: a prompt of {len(prompt)} tokens, allowed less than {self.loop.max_steps}",
                hint="shorten it",
            )
        allowed = min(most, self.options.max_steps)
        return Generation(
            feed,
            prompt,
            min(allowed, asking.max_steps or allowed),
            temperature=asking.temperature,
            seed=asking.seed,
            guard=self.options.guard,
        )

    def _recording(self, feed: Chunks, samples: np.ndarray, asking: Asking) -> Iterated:
        flat = _only_row(samples)
        if flat.dtype != DTYPES[self._fed.dtype]:
            raise InputError(f"{self.name}: input {feed.input!r} has dtype {flat.dtype}, allowed {self._fed.dtype}")
        windows = -(-flat.size // feed.hop)
        if windows > self.loop.max_steps:
            raise InputError(
                f"{self.name}: a sequence of {windows} steps, allowed {self.loop.max_steps}", hint="send it in parts"
            )
        return Recording(feed, flat, self._slots.results, asking.max_steps or windows)

    def _prompt(self, tokens: np.ndarray) -> list[int]:
        flat = _only_row(tokens)
        if flat.dtype.kind not in "iu" or flat.ndim != 1:
            raise InputError(
                f"{self.name}: a prompt of {flat.dtype} {list(flat.shape)}, allowed whole numbers, [n] or [1, n]"
            )
        if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < self._symbols:
            raise InputError(f"{self.name}: tokens from {flat.min()} to {flat.max()}, allowed 0 to {self._symbols - 1}")
        return [int(token) for token in flat]

    def refuse_waiting(self) -> None:
        """Those that run leave with what they have, at the next border."""
        self._iterations.refuse_waiting()

    def close(self) -> None:
        """What is here is finished first."""
        self._iterations.close()


def _only_row(array: np.ndarray) -> np.ndarray:
    return array[0] if array.ndim == 2 and len(array) == 1 else array


def _bytes_of(text: np.ndarray) -> list[int]:
    if text.dtype != object or text.shape != (1,):
        raise InputError(f"{TEXT!r} of shape {list(text.shape)}, allowed BYTES of shape [1]", hint="one text a request")
    return list(bytes(text[0]))
