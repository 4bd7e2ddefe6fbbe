"""What the terminal can show, and a stdout that holds nothing but results."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO


def is_terminal(stream: TextIO) -> bool:
    """A person watches, and the terminal can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_coloured(stream: TextIO) -> bool:
    """As https://no-color.org asks: any non-empty NO_COLOR switches colour off."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, style: str, stream: TextIO) -> str:
    """`text` in the named terminal style, or as it is where the stream shows no colour."""
    codes = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2", "bold red": "1;31"}
    return f"\x1b[{codes[style]}m{text}\x1b[0m" if is_coloured(stream) else text


# What a terminal would obey instead of showing it, beside what is below a space: more control characters, marks that
# turn the direction of writing; and halves of characters, which no stream takes.
OBEYED = r"\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_OBEYED = re.compile(rf"[\x00-\x08\x0b-\x1f{OBEYED}]")
_BREAKS = re.compile(r"[\t\n]")


def printable(text: str, *, one_line: bool = False) -> str:
    """`text` as it can be shown, whoever chose it: `\\x1b[2J` in the place of a code that clears the screen.
    `one_line`: tabs and ends of lines too."""
    shown = _OBEYED.sub(_escape, text)
    return _BREAKS.sub(_escape, shown) if one_line else shown


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def owns_descriptor(stream: TextIO, descriptor: int) -> bool:
    """False for a stream that a test or an embedding program has put in the place of the real one."""
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError, AttributeError):
        return False


def silence_stdout() -> None:
    """Nobody reads it any more, or nothing more goes in: else Python complains again when it flushes at exit."""
    if owns_descriptor(sys.stdout, 1):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def stdout_may_be_full() -> Iterator[None]:
    """For words that are better lost than in the way of how a command ends."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        silence_stdout()


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What libraries print meanwhile, from Python or from C++, goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1) if owns_descriptor(sys.stdout, 1) and owns_descriptor(sys.stderr, 2) else None
    if saved is not None:
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


@contextmanager
def own_stderr() -> Iterator[TextIO]:
    """A stream to the terminal that stays one while converters have descriptor 2 turned away."""
    if not owns_descriptor(sys.stderr, 2):
        yield sys.stderr
        return
    sys.stderr.flush()
    with open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace") as stream:  # noqa: PTH123
        yield stream
