"""What native libraries print when they begin, from C++, is not for the user's terminal."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Two that overlap would each take the other's nowhere for the real one.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def stderr_silenced() -> Iterator[None]:
    """File descriptor 2 goes nowhere meanwhile. It is the process's: what other threads say in these milliseconds is
    lost. For libraries whose errors are exceptions."""
    with _ONE_AT_A_TIME:
        if sys.stderr is not None:
            sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # a process without a terminal has nothing to silence
            yield
            return
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
