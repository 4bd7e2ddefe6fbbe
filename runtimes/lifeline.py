"""Processes that end with the one that started them, however that one ends: kill -9 leaves nobody who could end them.

The child's standard input is a pipe that nothing is written to and whose other end only the parent holds. The system
closes it with the parent; the child reads that, and asks itself to end. It works on every system and from any thread of
the parent, where Linux's own way (PR_SET_PDEATHSIG) follows the thread that made the child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "EDGEKIT_ENDS_WITH_STDIN"


def start_tied(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, **settings: Any
) -> subprocess.Popen[Any]:
    """Like `subprocess.Popen`, for a command of edgekit's, which then ends with this process as by SIGTERM. It may read
    nothing from its standard input. Raises OSError."""
    told = {**(os.environ if env is None else env), VARIABLE: "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=told, **settings)


def end_with_parent() -> None:
    """In the child, where it was started so; else nothing. Its own children are not told."""
    if os.environ.pop(VARIABLE, ""):
        threading.Thread(target=_wait, name="edgekit lifeline", daemon=True).start()


def _wait() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
