"""A share of answers beside those of the full model, in the background: never in the way of a request."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.errors import EdgekitError
from edgekit.fleet.agent.spool import SpoolRecorder
from edgekit.runtimes.session import Feeds

logger = logging.getLogger("edgekit")

LEAST_COSINE = 0.98  # of outputs that are no classes: below, they count as another answer
WAITING = 2  # further ones are passed over


class Reference(Protocol):
    """The full model, such as a session of `edgekit.connect` with the policy offload."""

    def run(self, feeds: Feeds) -> Mapping[str, np.ndarray]: ...

    def close(self) -> None: ...


class Comparison:
    """`open_reference` is called in a thread of its own, when first needed; where it fails, nothing is compared."""

    def __init__(self, open_reference: Callable[[], Reference], manifest: Manifest, recorder: SpoolRecorder) -> None:
        self._open, self._recorder = open_reference, recorder
        told = manifest.postprocess
        self._output = told.output if told is not None else None
        self._is_classes = told is None or told.kind == "classification"
        self._waiting: queue.Queue[tuple[Feeds, Mapping[str, np.ndarray]] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None

    def offer(self, feeds: Feeds, outputs: Mapping[str, np.ndarray]) -> None:
        """Passed over while others wait: comparing must not cost what it watches."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="edgekit-comparison", daemon=True)
            self._thread.start()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(({name: np.array(value) for name, value in feeds.items()}, dict(outputs)))

    def _work(self) -> None:
        try:
            reference = self._open()
        except EdgekitError as error:
            logger.warning("nothing is compared with the full model: %s", error.message)
            return
        try:
            while (item := self._waiting.get()) is not None:
                feeds, outputs = item
                try:
                    wanted = reference.run(feeds)
                except EdgekitError as error:
                    logger.info("not compared: %s", error.message)
                    continue
                self._recorder.compared(self._agree(outputs, wanted))
        finally:
            reference.close()

    def _agree(self, outputs: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> bool:
        name = self._output if self._output is not None and self._output in wanted else next(iter(wanted))
        if name not in outputs:
            return False
        return agree(outputs[name], wanted[name], self._is_classes)

    def close(self) -> None:
        """What waits is compared first, for a few seconds at most."""
        if self._thread is not None and self._thread.is_alive():
            try:
                self._waiting.put(None, timeout=5)
                self._thread.join(5)
            except queue.Full:
                logger.info("the full model is not waited for")


def agree(answer: np.ndarray, wanted: np.ndarray, is_classes: bool) -> bool:
    """The same first class in each row, or a cosine of LEAST_COSINE over all; arrays of another shape never agree."""
    if answer.shape != wanted.shape or not np.isfinite(answer).all():
        return False
    if is_classes and answer.ndim >= 1 and answer.shape[-1] > 1:
        return bool((answer.argmax(-1) == wanted.argmax(-1)).all())
    one, other = answer.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return bool(norm == 0 and not one.any() and not other.any()) or bool(norm and one @ other / norm >= LEAST_COSINE)
