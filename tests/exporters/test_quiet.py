from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from edgekit.exporters.quiet import converters_silenced


def test_nothing_reaches_the_terminal_and_the_text_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with converters_silenced() as noise:
        sys.stdout.write("from python\n")
        sys.stderr.write("to stderr\n")
        os.write(2, b"from C++\n")
        logging.getLogger("converter").error("logged")
        warnings.warn("old", stacklevel=1)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert {"from python", "to stderr", "from C++"} <= set(noise.text.splitlines())


def test_printing_works_again_afterwards_and_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), converters_silenced():
        raise ValueError("broken")
    sys.stdout.write("heard\n")
    os.write(2, b"heard too\n")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("heard\n", "heard too\n")


def test_log_handlers_and_levels_are_put_back() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.root.manager.disable
    with converters_silenced():
        logging.basicConfig(level=logging.DEBUG, force=True)
        logging.warning("a converter's")
    assert (root.handlers[:], root.level, logging.root.manager.disable) == before


def test_what_was_printed_can_be_read_inside_the_block() -> None:
    with converters_silenced() as noise:
        os.write(2, b"error: 'tfl.custom' op\n")
        assert "tfl.custom" in noise.text
