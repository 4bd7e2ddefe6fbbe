"""Terminal or not: what is drawn, and what never reaches stdout."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import pytest

from edgekit.cli.output import Cell, Column, Output, Table, draw, dump, facts
from edgekit.cli.progress_view import Bars, Lines
from edgekit.cli.streams import paint, printable, stdout_kept_clean


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TABLE = Table(
    (Column("name", style="cyan"), Column("ms", number=True), Column("why")),
    [("a", "1.25", Cell("chosen", "green")), ("longer", "10.00", "because " * 12)],
    "Things",
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def test_a_table_off_a_terminal_is_aligned_text_of_any_width() -> None:
    stream = io.StringIO()
    draw(TABLE, stream)
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["Things", "name       ms  why", "a        1.25  chosen"]
    assert lines[3] == ("longer  10.00  " + "because " * 12).rstrip()


def test_a_table_on_a_terminal_is_coloured_and_keeps_to_its_width(terminal: Terminal) -> None:
    draw(TABLE, terminal)
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "─" in text
    plain = "".join(part.split("m", 1)[-1] if index else part for index, part in enumerate(text.split("\x1b[")))
    assert max(len(line) for line in plain.splitlines()) <= 60
    assert plain.count("because") == 12


def test_a_table_too_wide_for_the_terminal_becomes_records(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("NO_COLOR", "1")
    draw(TABLE, terminal)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()]
    assert lines[:5] == ["Things", "a", "  ms: 1.25", "  why: chosen", "longer"]
    assert max(len(line) for line in lines) <= 24


def test_a_record_has_no_label_where_the_column_has_no_title(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("NO_COLOR", "1")
    columns = (Column("name"), Column("latency in ms", number=True), Column(""))
    draw(Table(columns, [("a-long-name", "1.25", "chosen")]), terminal)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert lines == ["a-long-name", "  latency in ms: 1.25", "  chosen"]


def test_no_color_is_honoured_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    draw(TABLE, terminal)
    assert "\x1b[3" not in terminal.getvalue()
    assert paint("text", "red", terminal) == "text"


def test_a_dumb_terminal_gets_plain_text(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    draw(TABLE, terminal)
    assert "\x1b" not in terminal.getvalue()


def test_markup_in_a_cell_is_text(terminal: Terminal) -> None:
    draw(Table((Column("[bold]x"),), [("[red]layer[0]",)]), terminal)
    assert "[red]layer[0]" in terminal.getvalue()
    assert "[bold]x" in terminal.getvalue()


def test_facts_are_names_and_values() -> None:
    stream = io.StringIO()
    draw(facts([("size", "1 MB"), ("quality", "good")]), stream)
    assert stream.getvalue() == "size:     1 MB\nquality:  good\n"


def test_json_has_no_nan_and_no_infinity() -> None:
    payload = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (-float("inf"),)}}
    assert json.loads(dump(payload)) == {"a": None, "b": [None, 1.5], "c": {"d": [None]}}


def test_with_json_nothing_else_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=True)
    out.line("words")
    out.table(TABLE)
    out.remark("a remark")
    out.emit({"a": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema_version": 1, "a": 1}
    assert captured.err == "a remark\n"


def test_quiet_leaves_out_remarks_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.remark("a remark")
    with out.working() as progress:
        progress("step", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_off_a_terminal_is_a_line_a_step() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for step, done in (("load", 0), ("load", 1), ("calibrate", 0), ("load", 1)):
        lines(step, done, 2)
    assert [line.split("] ")[1] for line in stream.getvalue().splitlines()] == ["load", "calibrate"]


def test_progress_on_a_terminal_is_a_bar_and_slow_steps_leave_a_line(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.cli.progress_view.WORTH_A_LINE_S", 0.0)
    with Bars(terminal) as bars:
        bars("calibrate [fast]", 3, 10)
        bars("convert", 0, 0)
    text = terminal.getvalue()
    assert "✓" in text
    assert "calibrate [fast]" in text
    assert "convert" in text


def test_what_c_libraries_print_goes_to_stderr() -> None:
    script = (
        "import os, sys\n"
        "from edgekit.cli.output import Output\n"
        "out = Output(json=True)\n"
        "with out.working():\n"
        "    print('from python')\n"
        "    os.write(1, b'from c\\n')\n"
        "out.emit({'a': 1})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"schema_version": 1, "a": 1}
    assert "from python" in done.stderr
    assert "from c" in done.stderr


def test_stdout_comes_back_after_a_failure() -> None:
    before = os.fstat(1)
    with pytest.raises(RuntimeError), stdout_kept_clean():
        raise RuntimeError
    assert os.path.samestat(os.fstat(1), before)


HOSTILE = "a\x1b[2J\x07\r\x9b\u202eb\udc80"


def test_control_characters_are_shown_and_text_stays() -> None:
    assert printable(HOSTILE) == "a\\x1b[2J\\x07\\r\\x9b\\u202eb\\udc80"
    assert printable("Ärger\t→ 日本\n한국 \u200f") == "Ärger\t→ 日本\n한국 \u200f"
    assert printable("a\tb\nc", one_line=True) == "a\\tb\\nc"
    assert printable(printable(HOSTILE)) == printable(HOSTILE)


def test_no_name_reaches_a_terminal_as_a_command(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    out = Output()
    out.line(HOSTILE)
    out.remark(HOSTILE)
    out.warn(HOSTILE, HOSTILE)
    out.table(Table((Column("name"),), [(f"{HOSTILE}\nnext",), (Cell(HOSTILE, "red"),)], HOSTILE))
    Lines(terminal)(HOSTILE, 0, 1)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())  # colours of our own
    assert [letter for letter in text if not (letter.isprintable() or letter == "\n")] == []
    assert text.count("\\x1b[2J") == 8 and "\nnext" not in text


def test_json_holds_the_names_as_they_are_and_shows_none_of_them() -> None:
    text = dump({"name": HOSTILE})
    assert json.loads(text) == {"name": HOSTILE}
    assert text.replace("\n", "").isprintable()
