"""What a command writes: tables and lines for people, or one JSON object for programs; never both."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import click

from edgekit.cli.streams import OBEYED, is_terminal, own_stderr, paint, printable, stdout_kept_clean
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

SCHEMA_VERSION = 1
FOLDED_WIDTH = 16
COLUMN_GAP = 2
# Loggers of libraries that warn of what no user can change.
CHATTER = ("torch.utils._pytree",)
# JSON escapes what is below a space; these a terminal would obey too, or a stream refuse.
_UNSHOWN = re.compile(f"[{OBEYED}]")


@dataclass(frozen=True)
class Column:
    """`number` columns are aligned to the right; they and the first column are never folded."""

    title: str
    number: bool = False
    style: str = ""


@dataclass(frozen=True)
class Cell:
    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """`rows` hold strings, or Cells where one wants a colour of its own. Without a header, a list of facts."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    header: bool = True


@dataclass
class Output:
    """`verbose` shows logs and tracebacks, `quiet` leaves out progress and remarks."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    _emitted: bool = field(default=False, init=False)

    def emit(self, payload: Mapping[str, Any]) -> None:
        """The one object of a command run with --json; nothing without it. NaN and infinity become null."""
        if self.json:
            assert not self._emitted, "a command emits one object"
            self._emitted = True
            click.echo(dump({"schema_version": SCHEMA_VERSION, **payload}))

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result, on stdout."""
        if not self.json:
            text = printable(text)
            click.echo(paint(text, style, sys.stdout) if style else text, color=True)

    def table(self, table: Table) -> None:
        """Part of the result, on stdout."""
        if not self.json:
            draw(table, sys.stdout)

    def remark(self, text: str) -> None:
        """Worth knowing, no part of the result: on stderr."""
        if not self.quiet:
            click.echo(paint(printable(text), "dim", sys.stderr), err=True, color=True)

    def warn(self, text: str, hint: str = "") -> None:
        """Something that the user will want to mend, though the command goes on: on stderr."""
        if not self.quiet:
            click.echo(f"{paint('warning:', 'yellow', sys.stderr)} {printable(text)}", err=True, color=True)
            if hint:
                click.echo(f"{paint('hint:', 'cyan', sys.stderr)} {printable(hint)}", err=True, color=True)

    @contextmanager
    def working(self) -> Iterator[Progress]:
        """For long work: draws its progress on stderr, and keeps libraries' chatter away from stdout."""
        for name in CHATTER:
            logging.getLogger(name).setLevel(logging.ERROR)
        with stdout_kept_clean(), own_stderr() as stream:
            if self.quiet:
                yield silent
            elif is_terminal(sys.stderr):
                from edgekit.cli.progress_view import Bars

                with Bars(stream) as bars:
                    yield bars
            else:
                from edgekit.cli.progress_view import Lines

                yield Lines(stream)


def facts(rows: Sequence[tuple[str, str | Cell]], title: str = "") -> Table:
    """Name and value pairs."""
    return Table((Column("", style="dim"), Column("")), [(f"{name}:", value) for name, value in rows], title, False)


def dump(payload: Mapping[str, Any]) -> str:
    text = json.dumps(_finite(payload), indent=2, ensure_ascii=False, allow_nan=False)
    return _UNSHOWN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def draw(table: Table, stream: TextIO) -> None:
    """With rules and colours on a terminal, folded to its width; elsewhere aligned text of any width."""
    if is_terminal(stream):
        _draw_rich(table, stream)
    else:
        _draw_plain(table, stream)


def _draw_rich(table: Table, stream: TextIO) -> None:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    console.print(_grid(table) if _least_width(table) <= console.width else _records(table))


def _least_width(table: Table) -> int:
    """Below this, folding tears the words apart."""
    least = 0
    for index, column in enumerate(table.columns):
        widest = max((len(_text(row[index])) for row in table.rows), default=0)
        whole = column.number or index == 0
        least += max(len(column.title), widest if whole else min(widest, FOLDED_WIDTH)) + COLUMN_GAP
    return least - COLUMN_GAP


def _grid(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    view = RichTable(
        title=Text(printable(table.title), "bold") if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if table.header else None,
        show_header=table.header,
        header_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, COLUMN_GAP - 1 if table.header else COLUMN_GAP, 0, 0),
    )
    for index, column in enumerate(table.columns):
        view.add_column(
            Text(column.title),
            justify="right" if column.number else "left",
            style=column.style or None,
            no_wrap=column.number or index == 0,
            overflow="fold",
        )
    for row in table.rows:
        view.add_row(*(Text(_text(cell), cell.style if isinstance(cell, Cell) else "") for cell in row))
    return view


def _records(table: Table) -> Group:
    """For a narrow terminal: each row as its first cell, and below it a line for each cell that says something."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(printable(table.title), "bold")] if table.title else []
    for row in table.rows:
        lines.append(Text(_text(row[0]), table.columns[0].style))
        for cell, column in list(zip(row, table.columns, strict=True))[1:]:
            if _text(cell) in ("", "-"):
                continue
            style = cell.style if isinstance(cell, Cell) else ""
            label = f"{column.title}: " if column.title else ""
            lines.append(Text.assemble("  ", (label, "dim"), (_text(cell), style)))
    return Group(*lines)


def _text(cell: str | Cell) -> str:
    return printable(cell if isinstance(cell, str) else cell.text, one_line=True)


def _draw_plain(table: Table, stream: TextIO) -> None:
    rows = [[_text(cell) for cell in row] for row in table.rows]
    if table.header:
        rows.insert(0, [column.title for column in table.columns])
    widths = [max((len(row[index]) for row in rows), default=0) for index in range(len(table.columns))]
    if table.title:
        click.echo(printable(table.title), file=stream)
    for row in rows:
        cells = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(row, widths, table.columns, strict=True)
        ]
        click.echo("  ".join(cells).rstrip(), file=stream)
