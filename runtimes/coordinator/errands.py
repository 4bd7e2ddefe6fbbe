"""Work that runs elsewhere and reports to the mailbox of the thread that asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from edgekit.errors import EdgekitError, SessionError
from edgekit.runtimes.coordinator.clock import Mailbox
from edgekit.runtimes.coordinator.means import Means


class Errands:
    """Of one request, in the coordinator's pool."""

    def __init__(self, means: Means, mailbox: Mailbox) -> None:
        self._means, self._mailbox = means, mailbox
        self._futures: list[Future[Any]] = []

    def post(self, call: Callable[[], Any], handler: Callable[[Future[Any], float], None]) -> None:
        """`call` in the pool; then, in the asking thread, `handler` with its future and when it ended."""
        future = self._means.submit(call)
        self._futures.append(future)
        now = self._means.clock.now
        future.add_done_callback(lambda done: self._mailbox.put(partial(handler, done, now())))

    @property
    def are_under_way(self) -> bool:
        return any(not future.done() for future in self._futures)

    def call_off(self) -> None:
        """What has not begun yet."""
        for future in self._futures:
            future.cancel()


def check_open(future: Future[Any]) -> None:
    """Raises SessionError for an errand that was called off because the coordinator was closed."""
    if future.cancelled():
        raise SessionError("this coordinator was closed meanwhile", hint="connect again")


def error_of(future: Future[Any]) -> EdgekitError | None:
    """What it failed by, as one of ours."""
    error = future.exception()
    if error is None or isinstance(error, EdgekitError):
        return error
    return SessionError(f"{type(error).__name__}: {error}")
