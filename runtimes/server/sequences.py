"""What one request puts into the steps of an iterated model and takes out of them: a recording, or a generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from edgekit.bundle.loop import Choice, Chunks
from edgekit.errors import InputError, SessionError
from edgekit.runtimes.server.output_guard import GuardOptions, LoopGuard
from edgekit.tensors import DTYPES, TensorSpec

Arrays = Mapping[str, np.ndarray]
Finish = Literal["stop", "length", "loop", "deadline"]


class Iterated(ABC):
    """`produced`: how much of an answer there is; `generates`: whether it counts against a tenant's tokens."""

    produced = 0
    generates = False

    @abstractmethod
    def feed(self, row: np.ndarray) -> None:
        """Writes what the next step is fed."""

    @abstractmethod
    def take(self, outputs: Arrays, row: int) -> Finish | None:
        """What that step gave: row `row` of `outputs`. Not None ends the sequence. Raises SessionError."""

    @abstractmethod
    def answer(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """What was produced from `start` up to `stop`, by default up to now."""


class Recording(Iterated):
    """One sequence, window by window; each output's rows along the first axis, one a window."""

    def __init__(self, config: Chunks, samples: np.ndarray, results: Sequence[TensorSpec], most: int) -> None:
        """`samples` [n]; no more than `most` windows are heard. Raises InputError for none."""
        if samples.ndim != 1 or not samples.size:
            raise InputError(
                f"input {config.input!r} has the shape {list(samples.shape)}, allowed one sequence: [n] or [1, n]",
                hint="send each sequence in a request of its own: they run together all the same",
            )
        self._samples, self._hop, self._context = samples, config.hop, config.context
        windows = -(-len(samples) // config.hop)
        self.steps = min(windows, most)
        self._finish: Finish = "stop" if self.steps == windows else "length"
        self._outputs = {spec.name: np.empty((self.steps, *_row_shape(spec)), DTYPES[spec.dtype]) for spec in results}

    def feed(self, row: np.ndarray) -> None:
        start = self.produced * self._hop - self._context
        stop = min(start + self._context + self._hop, len(self._samples))
        row[:] = 0
        row[max(0, -start) : stop - start] = self._samples[max(0, start) : stop]

    def take(self, outputs: Arrays, row: int) -> Finish | None:
        for name, kept in self._outputs.items():
            kept[self.produced] = outputs[name][row]
        self.produced += 1
        return self._finish if self.produced == self.steps else None

    def answer(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        return {name: kept[start : self.produced if stop is None else stop] for name, kept in self._outputs.items()}


class Generation(Iterated):
    """A prompt, then one choice after another: the likeliest, or at a `temperature` a drawn one.

    The draw of a step depends on `seed` and the step alone: the same request has the same answer in any company.
    """

    generates = True

    def __init__(
        self,
        config: Choice,
        prompt: Sequence[int],
        most: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        guard: GuardOptions = GuardOptions(),
    ) -> None:
        """At most `most` tokens. Raises InputError for an empty prompt where nothing else starts the text."""
        starts = [] if config.start is None else [config.start]
        self._fed = [*starts, *prompt]
        if not self._fed:
            raise InputError("the prompt is empty", hint="send at least one token")
        self._config, self._most, self._temperature = config, most, temperature
        self._draw = np.random.default_rng(seed)
        self._guard = LoopGuard(guard)
        self._tokens: list[int] = []
        self._step = 0

    def feed(self, row: np.ndarray) -> None:
        row[...] = self._fed[self._step] if self._step < len(self._fed) else self._tokens[-1]

    def take(self, outputs: Arrays, row: int) -> Finish | None:
        self._step += 1
        if self._step < len(self._fed):
            return None
        token = self._choose(outputs[self._config.output][row].reshape(-1))
        if token == self._config.stop:
            return "stop"
        self._tokens.append(token)
        self.produced += 1
        if self._guard.sees_loop(token):
            return "loop"
        return "length" if self.produced >= self._most else None

    def _choose(self, logits: np.ndarray) -> int:
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise SessionError(f"the output {self._config.output!r} holds NaN or infinity", hint="check the model")
        if self._temperature == 0:
            return best
        shares = np.exp((logits.astype(np.float64) - logits[best]) / self._temperature).cumsum()
        return int(shares.searchsorted(self._draw.random() * shares[-1], side="right"))

    def answer(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """The tokens by the name of the input; as `text` too where they are bytes."""
        tokens = np.asarray(self._tokens[start:stop], np.int64)
        answer = {self._config.input: tokens}
        if self._config.encoding == "bytes":
            text = np.empty(1, object)
            text[0] = tokens.astype(np.uint8).tobytes()
            answer["text"] = text
        return answer


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    sizes = tuple(size for size in spec.shape[1:] if isinstance(size, int))
    if len(sizes) != len(spec.shape) - 1:
        raise SessionError(f"the output {spec.name!r} of a step has the shape {list(spec.shape)}, allowed a fixed one")
    return sizes
