"""Counts of several workers as one: whichever of them is asked for metrics tells what all of them counted.

prometheus_client's multi-process mode: each process keeps its counts in files of one folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@contextlib.contextmanager
def shared_counts() -> Iterator[None]:
    """What is counted inside, here and in processes that begin there, is counted together. One that is killed with all
    its workers leaves its files to the machine's next cleaning of temporary ones."""
    before = os.environ.get(_FOLDER)
    with tempfile.TemporaryDirectory(prefix="edgekit-counts-") as folder:
        os.environ[_FOLDER] = folder
        values.ValueClass = values.get_value_class()  # the library looks only when it is loaded
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before
            values.ValueClass = values.get_value_class()


def registries() -> tuple[CollectorRegistry, CollectorRegistry]:
    """(where metrics are entered, what is told): two where counts are shared."""
    entered = CollectorRegistry()
    if _FOLDER not in os.environ:
        return entered, entered
    told = CollectorRegistry()
    MultiProcessCollector(told)
    return entered, told


def forget(process: int) -> None:
    """What a worker that ended held; what it counted stays."""
    if _FOLDER in os.environ:
        mark_process_dead(process)
