"""What is known outlives whoever found it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.search.state import State


def test_what_was_measured_once_is_not_measured_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> list[float]:
        calls.append(1)
        return [0.5]

    assert State(tmp_path / "s.json").remember("a", measure) == [0.5]
    assert State(tmp_path / "s.json").remember("a", measure) == [0.5]
    assert len(calls) == 1
    State(tmp_path / "s.json", fresh=True).remember("a", measure)
    assert len(calls) == 2


def test_values_come_back_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    state = State(tmp_path / "s.json")
    for name in ("verified/b", "other", "verified/a"):
        state.put(name, name)
    assert State(tmp_path / "s.json").under("verified/") == ["verified/b", "verified/a"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_file_is_begun_anew_and_told(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s.json").write_text(content)
    assert len(State(tmp_path / "s.json")) == 0
    assert "begun anew" in caplog.text


def test_values_of_another_shape_are_begun_anew_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s.json").write_text('{"a": 1, "b": "two"}')
    assert len(State(tmp_path / "s.json", reads=int)) == 0
    assert "begun anew" in caplog.text
    (tmp_path / "s.json").write_text('{"a": 1, "b": 2}')
    assert len(State(tmp_path / "s.json", reads=int)) == 2


WRITER = """
import sys
from pathlib import Path
from edgekit.search.state import State
state = State(Path(sys.argv[1]))
for index in range(10**6):
    state.put(str(index), [index] * 50)
    print(index, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "s.json")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    written = [process.stdout.readline() for _ in range(20)]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = json.loads((tmp_path / "s.json").read_text())
    assert known["19"] == [19] * 50
    assert written[-1] == "19\n"
