from __future__ import annotations

import os
import threading

import pytest

from edgekit.runtimes.quiet import stderr_silenced


def test_what_is_written_meanwhile_is_lost_and_what_follows_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before ")
    with stderr_silenced():
        os.write(2, b"meanwhile ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_an_error_inside_leaves_the_descriptor_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), stderr_silenced():
        raise ValueError("broken")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_threads_that_overlap_do_not_lose_it_for_good(capfd: pytest.CaptureFixture[str]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with stderr_silenced():
            inside.set()
            leave.wait(10)

    def second() -> None:
        with stderr_silenced():
            pass

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(10)
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
