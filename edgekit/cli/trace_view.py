"""A request's spans as bars on one time axis, for a terminal: lines of styled text.

Each cell of a bar shows what its time was spent on where the span itself was at work, and a thin line where a span
below it was. Tiers have colours, and names in a column for those who see none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.cli.streams import printable
from edgekit.cli.wording import number_text

if TYPE_CHECKING:
    from edgekit.runtimes.tracing.joining import Branch, Trace
    from edgekit.runtimes.tracing.stages import Stage

# (text, style) in order
Line = list[tuple[str, str]]

FILLS = {"compute": "█", "codec": "▓", "queue": "▒", "link": "░", "other": "╌"}
BELOW = "─"
# Where a span lies beyond the axis.
BEFORE, AFTER = "◂", "▸"
TIER_STYLES = {"device": "cyan", "edge": "green", "cloud": "magenta"}
OTHER_STYLE = "yellow"

LEAST_BAR, MOST_LABEL = 16, 36
MS_WIDTH, SHARE_WIDTH = 8, 6


@dataclass(frozen=True)
class Layout:
    """Widths in cells; `tier` is that of the longest tier's name."""

    label: int
    tier: int
    bar: int

    @classmethod
    def of(cls, trace: Trace, width: int) -> Layout:
        branches = list(trace.branches())
        label = max(len("span"), *(2 * branch.depth + len(label_of(branch)) for branch in branches))
        tier = max(len("tier"), *(len(tier_of(branch)) for branch in branches))
        figures = tier + 2 * MS_WIDTH + SHARE_WIDTH + 6
        label = min(label, MOST_LABEL, max(12, width - figures - LEAST_BAR))
        return cls(label, tier, max(LEAST_BAR, width - figures - label))


def flame(trace: Trace, width: int = 100) -> list[Line]:
    """The axis, and a line for each span, parents above children."""
    layout = Layout.of(trace, width)
    return [_axis(trace.total_ms, layout), *(_row(trace, branch, layout) for branch in trace.branches())]


def legend(stages: Sequence[Stage], total_ms: float) -> Line:
    """What the fills mean, and how much of each there was: `█ compute 51.2  ▓ codec 4.5 ... ms`."""
    spent = {kind: sum(stage.duration_ms for stage in stages if stage.kind == kind) for kind in FILLS}
    line: Line = []
    for kind, duration_ms in spent.items():
        name = "rest" if kind == "other" else kind
        line += [(f"{FILLS[kind]} {name} ", ""), (f"{figure(duration_ms, total_ms)}  ", "bold")]
    return [*line, (f"ms  {BELOW} in the spans below", "dim")]


def label_of(branch: Branch) -> str:
    """`send → edge #2`, `local (hedge)`; a span that was let go of says so."""
    span = branch.span
    node = span.attribute("node")
    if span.name == "forward" and branch.children:
        node = branch.children[0].span.tier
    label = f"{span.name} → {node}" if node else span.name
    attempt, why = span.attribute("attempt"), span.attribute("why")
    if isinstance(attempt, int) and attempt > 1:
        label += f" #{attempt}"
    if isinstance(why, str) and why != "planned":
        label += f" ({why})"
    if branch.is_let_go:
        label += ", let go"
    return printable(f"{label} ✗" if span.is_error else label, one_line=True)


def tier_of(branch: Branch) -> str:
    return printable(branch.span.tier, one_line=True)


def figure(duration_ms: float, total_ms: float) -> str:
    """As many digits after the point for all of a trace, so that figures below each other can be compared."""
    return number_text(duration_ms, 3 if total_ms < 10 else 2 if total_ms < 100 else 1)


def tier_style(tier: str) -> str:
    return TIER_STYLES.get(tier, OTHER_STYLE)


def share_bar(share: float, kind: str, width: int) -> str:
    """At least one cell of what is not nothing."""
    return FILLS[kind] * max(1, round(width * share)) if share > 0 else ""


def plain_text(lines: Iterable[Line]) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def _axis(total_ms: float, layout: Layout) -> Line:
    """Figures where the axis begins, at its quarters, and where it ends."""
    cells = [" "] * layout.bar
    marks = 4 if layout.bar >= 40 else 2
    for mark in range(marks + 1):
        text = "0" if mark == 0 else figure(total_ms * mark / marks, total_ms)
        at = min(layout.bar - len(text), round(layout.bar * mark / marks) - (len(text) // 2 if mark else 0))
        cells[at : at + len(text)] = text
    head = f"{'span':<{layout.label}} {'tier':<{layout.tier}} "
    return [(f"{head}{''.join(cells)} {'ms':>{MS_WIDTH}} {'%':>{SHARE_WIDTH}} {'self':>{MS_WIDTH}}", "dim")]


def _row(trace: Trace, branch: Branch, layout: Layout) -> Line:
    style = tier_style(branch.span.tier)
    label = "  " * branch.depth + label_of(branch)
    if len(label) > layout.label:
        label = label[: layout.label - 1] + "…"
    faded = " dim" if branch.is_let_go else ""
    share = branch.duration_ms / trace.total_ms if trace.total_ms else 0.0
    own = figure(branch.self_ms, trace.total_ms) if branch.children else ""
    return [
        (f"{label:<{layout.label}} ", "bold red" if branch.span.is_error else f"{style}{faded}"),
        (f"{tier_of(branch):<{layout.tier}} ", f"{style} dim"),
        (_bar(trace.root, branch, layout.bar), "red" if branch.span.is_error else f"{style}{faded}"),
        (f" {figure(branch.duration_ms, trace.total_ms):>{MS_WIDTH}} {number_text(100 * share):>{SHARE_WIDTH}}", ""),
        (f" {own:>{MS_WIDTH}}", "dim"),
    ]


def _bar(root: Branch, branch: Branch, width: int) -> str:
    """`width` cells on the root's axis; what lies beyond it is marked at its end."""
    from edgekit.runtimes.tracing.stages import kind_of

    span_ns = max(1, root.end_ns - root.start_ns)
    if branch.start_ns >= root.end_ns:
        return " " * (width - 1) + AFTER
    if branch.end_ns <= root.start_ns and branch is not root:
        return BEFORE + " " * (width - 1)
    cells = [" "] * width
    first, last = (round(width * (mark - root.start_ns) / span_ns) for mark in (branch.start_ns, branch.end_ns))
    first = min(width - 1, max(0, first))
    last = min(width, max(first + 1, last))
    own = branch.self_intervals()
    for cell in range(first, last):
        start = root.start_ns + cell * span_ns / width
        end = start + span_ns / width
        inside = min(end, branch.end_ns) - max(start, branch.start_ns)
        cells[cell] = FILLS[kind_of(branch)] if 2 * _overlap(own, start, end) >= inside else BELOW
    if branch.end_ns > root.end_ns:
        cells[-1] = AFTER
    return "".join(cells)


def _overlap(intervals: Sequence[tuple[int, int]], start: float, end: float) -> float:
    return sum(max(0.0, min(end, last) - max(start, first)) for first, last in intervals)
