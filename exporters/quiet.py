"""Converters print progress, banners and warnings from Python and from C++: none of it is for the user's terminal."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO


class Noise:
    """What was printed meanwhile, kept until the block ends: a converter's diagnosis is often only there."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._kept: str | None = None

    @property
    def text(self) -> str:
        if self._kept is not None:
            return self._kept
        self._file.seek(0)
        return self._file.read().decode(errors="replace")

    def keep(self) -> None:
        self._kept = self.text


@contextmanager
def converters_silenced() -> Iterator[Noise]:
    """Nothing reaches stdout, stderr, the log (below CRITICAL) or the warnings of this process inside the block.

    File descriptors 1 and 2 are process-wide: what other threads print meanwhile is kept with the rest. Streams, log
    handlers and levels are as before afterwards, whatever the converter did to them.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    _flush()
    with tempfile.TemporaryFile() as file, open(os.dup(file.fileno()), "w", errors="replace") as text:  # noqa: PTH123
        noise = Noise(file)
        saved = os.dup(1), os.dup(2)
        # logging.warning() on a root logger without handlers installs one, on a stream that is about to close
        root.addHandler(logging.NullHandler())
        logging.disable(max(disabled, logging.ERROR))
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(text), redirect_stderr(text), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield noise
        finally:
            text.flush()
            noise.keep()
            for target, copy in enumerate(saved, start=1):
                os.dup2(copy, target)
                os.close(copy)
            logging.disable(disabled)
            root.handlers[:] = handlers
            root.setLevel(level)


def _flush() -> None:
    """What was printed before belongs to the user."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
