"""Progress as a person wants it: bars on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from edgekit.cli.streams import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

# A step shorter than this leaves no line behind: fast steps would scroll the long ones away.
WORTH_A_LINE_S = 0.5


class Lines:
    """A line when a step begins, with the seconds since the start; a step that comes back is not told again."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._start = stream, time.perf_counter()
        self._seen: set[str] = set()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step in self._seen:
            return
        self._seen.add(step)
        self._stream.write(f"[{time.perf_counter() - self._start:6.1f} s] {printable(step)}\n")
        self._stream.flush()


class Bars:
    """One live bar for the step in hand; steps that took a while stay above it with their time."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28, complete_style="cyan", finished_style="cyan", pulse_style="cyan"),
            TextColumn("{task.fields[count]}", style="dim"),
            TimeElapsedColumn(),
            console=Console(file=stream, force_terminal=True, highlight=False),
            transient=True,
        )
        self._step, self._since = "", 0.0
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._leave_line()
        self._bars.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        from rich.markup import escape

        if step != self._step or self._task is None:
            self._leave_line()
            self._step, self._since = step, time.perf_counter()
            self._task = self._bars.add_task(escape(printable(step)), total=total or None, count="")
        self._bars.update(self._task, completed=done, total=total or None, count=f"{done}/{total}" if total else "")

    def _leave_line(self) -> None:
        from rich.markup import escape

        if self._task is None:
            return
        seconds = time.perf_counter() - self._since
        if seconds >= WORTH_A_LINE_S:
            self._bars.console.print(f"[green]✓[/green] {escape(printable(self._step))} [dim]{seconds:.1f} s[/dim]")
        self._bars.remove_task(self._task)
        self._task = None
