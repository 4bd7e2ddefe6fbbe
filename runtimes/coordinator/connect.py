"""`edgekit.connect`: a bundle and the nodes above it as one Session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.bundle.bundle import Bundle
from edgekit.errors import EdgekitError, SessionError
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.peer import Peer
from edgekit.runtimes.session import Feeds, Session, SessionOptions
from edgekit.tensors import shares_batch

# A batch is cut into at most so many pieces, so that one is sent while the next is computed.
PIECES = 4


class SplitSession(Session):
    """A coordinator as a Session: `run` gives the outputs, `last` tells how they came about.

    A batch (first axis dynamic and the same for all inputs and outputs) is cut in pieces that overlap, each with the
    deadline; `last` is then the piece that took longest, or one that was degraded. Closing it closes the coordinator.
    """

    format: ClassVar[str] = "split"

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.last: Answer | None = None
        options = SessionOptions()
        super().__init__(coordinator.bundle.path, coordinator.inputs, coordinator.outputs, options)

    def _load(self) -> None:
        self._is_batchable = shares_batch(spec.shape for spec in (*self.inputs, *self.outputs))

    def ask(self, feeds: Feeds, deadline_ms: float | None = None) -> Answer:
        """The whole answer of one request; `last` is it. Raises like `Coordinator.ask`."""
        if self._closed:
            raise SessionError("this session is closed", hint="connect again")
        self.last = self.coordinator.ask(feeds, deadline_ms)
        return self.last

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        feeds = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        rows = len(arrays[0]) if self._is_batchable else 1
        if rows < 2 or any(len(array) != rows for array in arrays):
            outputs = self.ask(feeds).outputs
            return [np.require(outputs[spec.name], requirements="W") for spec in self.outputs]
        return self._run_pieces(feeds, rows)

    def _run_pieces(self, feeds: Feeds, rows: int) -> Sequence[np.ndarray]:
        pieces = min(PIECES, rows)
        cuts = [rows * piece // pieces for piece in range(pieces + 1)]
        parts = ({name: array[start:end] for name, array in feeds.items()} for start, end in pairwise(cuts))
        answers: list[Answer] = []
        for outcome in self.coordinator.ask_many(parts):
            if isinstance(outcome, EdgekitError):
                raise outcome
            answers.append(outcome)
        self.last = max(answers, key=lambda answer: (answer.degraded, answer.total_ms))
        return [np.concatenate([answer.outputs[spec.name] for answer in answers]) for spec in self.outputs]

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        """Nothing lies under a coordinator that could answer alone: a request without this session's checks."""
        return lambda: self.coordinator.ask(feeds)

    def _close(self) -> None:
        self.coordinator.close()


def connect(
    bundle: Bundle | str | Path,
    edge: str | Peer | None = None,
    cloud: str | Peer | None = None,
    deadline_ms: float | None = None,
    policy: str = "auto",
    **settings: Any,
) -> SplitSession:
    """A Session that runs `bundle` here and on the nodes given, by the best plan for the link of the moment.

    `edge`, `cloud`: grpc://host:port or grpcs://host:port. `deadline_ms` of every run. `settings`: those of
    `Coordinator` (token, ca, certificate, objective, limits, links, threads, key, trace ...); an unknown one is a
    TypeError. Raises like `Coordinator`.
    """
    coordinator = Coordinator(bundle, edge, cloud, policy, deadline_ms, **settings)
    try:
        return SplitSession(coordinator)
    except BaseException:
        coordinator.close()
        raise
