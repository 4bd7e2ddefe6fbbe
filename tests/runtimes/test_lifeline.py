from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from edgekit.runtimes.lifeline import VARIABLE, end_with_parent, start_tied

# Both hold the pipe of stdout: the test reads its end when neither lives any more.
CHILD = (
    "import signal, sys, threading\n"
    "from edgekit.runtimes.lifeline import end_with_parent\n"
    "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit('asked to end'))\n"
    "end_with_parent()\n"
    "print('up', flush=True)\n"
    "threading.Event().wait(60)\n"
)
PARENT = (
    "import sys, threading\n"
    "from edgekit.runtimes.lifeline import start_tied\n"
    "made = []\n"
    f"thread = threading.Thread(target=lambda: made.append(start_tied([sys.executable, '-c', {CHILD!r}])))\n"
    "thread.start()\n"
    "thread.join()\n"
    "threading.Event().wait(60)\n"
)


def test_a_child_ends_with_a_parent_that_is_killed_but_not_with_the_thread_that_made_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        time.sleep(0.1)
        parent.kill()
        began = time.monotonic()
        assert parent.stdout.read() == ""
        assert "asked to end" in parent.stderr.read()
        assert time.monotonic() - began < 50


def test_a_child_goes_on_while_its_parent_lives_and_its_own_children_are_not_told() -> None:
    told = f"import os, json; os.environ['OTHER'] = '1'; import {end_with_parent.__module__} as it\n"
    told += f"before = {VARIABLE!r} in os.environ; it.end_with_parent()\n"
    told += f"print(json.dumps([before, {VARIABLE!r} in os.environ]))"
    with start_tied([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        out = child.stdout.read()  # `communicate` would close the lifeline
        child.wait(50)
    assert json.loads(out) == [True, False] and child.returncode == 0


def test_without_such_a_parent_nothing_is_watched() -> None:
    assert VARIABLE not in os.environ
    before = signal.getsignal(signal.SIGTERM)
    end_with_parent()
    assert signal.getsignal(signal.SIGTERM) is before
