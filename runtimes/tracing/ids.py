"""Span ids that can be given away before their span is there: a callee's spans then hang below it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator


class ReservedIds(RandomIdGenerator):  # type: ignore[misc]
    """Random ids, but the next one of this thread where `using` names it."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def generate_span_id(self) -> int:
        wanted: int = getattr(self._mine, "next", 0)
        if wanted:
            self._mine.next = 0
            return wanted
        made: int = super().generate_span_id()
        return made

    @contextmanager
    def using(self, span_id: int) -> Iterator[None]:
        """The next span of this thread gets `span_id`; 0 for a random one."""
        self._mine.next = span_id
        try:
            yield
        finally:
            self._mine.next = 0
