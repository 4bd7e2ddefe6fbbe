"""Spans as they lie in files, made by hand: milliseconds on a clock that begins at a fixed moment."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.runtimes.tracing.span import Span

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
START_NS = 1_795_996_000_000_000_000


class Maker:
    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def __call__(
        self,
        name: str,
        start_ms: float,
        end_ms: float,
        parent: Span | None = None,
        at: str = "device",
        trace: str = TRACE,
        status: str = "UNSET",
        **attributes: Any,
    ) -> Span:
        return Span(
            name=name,
            trace_id=trace,
            span_id=f"{next(self._ids):016x}",
            parent_id=parent.span_id if parent is not None else None,
            service=f"edgekit-{at}",
            instance=f"{at}-1",
            start_ns=START_NS + round(1e6 * start_ms),
            duration_ms=end_ms - start_ms,
            status=status,
            **{f"edgekit.{key}": value for key, value in attributes.items()},
        )


@pytest.fixture
def make() -> Callable[..., Span]:
    return Maker()


@pytest.fixture
def free_port() -> int:
    """Nothing listens there, for as long as nobody else is given it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
