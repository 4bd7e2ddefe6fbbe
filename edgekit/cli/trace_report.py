"""What is said of a request around its picture: the head, the table of stages, remarks; and all of it as JSON data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edgekit.cli.output import Cell, Column, Table
from edgekit.cli.trace_view import Line, figure, label_of, share_bar, tier_style
from edgekit.cli.wording import count_text, ms_text, number_text, plain, size_text

if TYPE_CHECKING:
    from edgekit.runtimes.tracing.files import Reading
    from edgekit.runtimes.tracing.joining import Branch, Trace
    from edgekit.runtimes.tracing.stages import Stage

STATUS_STYLES = {"ok": "green", "degraded": "yellow"}
BAR_WIDTH = 30


def payload(trace: Trace, found: Sequence[Stage], reading: Reading) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "model": trace.attribute("model"),
        "status": trace.status,
        "total_ms": trace.total_ms,
        "tiers": list(trace.tiers),
        "start_ns": trace.root.start_ns,
        "spans": [_span_entry(trace, branch) for branch in trace.branches()],
        "stages": [
            {"stage": stage.name, "where": stage.where, "kind": stage.kind, "ms": stage.duration_ms} for stage in found
        ],
        "clocks": [plain(clock) for clock in trace.clocks],
        "detached_spans": len(trace.others),
        "damaged_lines": reading.damaged,
    }


def _span_entry(trace: Trace, branch: Branch) -> dict[str, Any]:
    """`start_ms` from the beginning of the whole, on its clock."""
    span = branch.span
    return {
        "name": span.name,
        "tier": span.tier,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "depth": branch.depth,
        "start_ms": (branch.start_ns - trace.root.start_ns) / 1e6,
        "duration_ms": branch.duration_ms,
        "self_ms": branch.self_ms,
        "status": span.status,
        "attributes": dict(span.model_extra or {}),
    }


def head(trace: Trace) -> list[Line]:
    """Which request, what it came to, and by which way."""
    status = trace.status
    facts = [str(trace.attribute("model") or "")]
    variant, rates = trace.attribute("variant"), trace.attribute("rates")
    if variant:
        facts.append(f"variant {variant}" + (f" at rate {rates[0]}" if isinstance(rates, list) and rates else ""))
    if trace.attribute("policy"):
        facts.append(f"policy {trace.attribute('policy')}")
    if trace.attribute("tier"):
        facts.append(f"answered by the {trace.attribute('tier')}")
    for way in ("sent", "received"):
        size = trace.attribute(f"bytes_{way}")
        if isinstance(size, int) and size:
            facts.append(f"{size_text(size)} {way}")
    first: Line = [("trace ", "dim"), (trace.trace_id, "bold"), (f"  {moment(trace)} UTC  ", "dim")]
    first += [(f"{ms_text(trace.total_ms)} ms  ", "bold"), (status, STATUS_STYLES.get(status, "bold red"))]
    return [first, [(", ".join(filter(None, facts)), "")], []]


def stage_table(trace: Trace, found: Sequence[Stage]) -> Table:
    columns = (
        Column("stage", style="bold"),
        Column("where"),
        Column("ms", number=True),
        Column("%", number=True),
        Column(""),
    )
    total_ms = trace.total_ms
    rows: list[tuple[str | Cell, ...]] = []
    for stage in found:
        share, style = stage.duration_ms / total_ms if total_ms else 0.0, tier_style(stage.where.split(" ")[0])
        bar = Cell(share_bar(share, stage.kind, BAR_WIDTH), style)
        rows.append(
            (stage.name, Cell(stage.where, style), figure(stage.duration_ms, total_ms), number_text(100 * share), bar)
        )
    summed = sum(stage.duration_ns for stage in found) / 1e6
    rows.append(
        ("total", "", Cell(figure(summed, total_ms), "bold"), Cell(number_text(100.0 if total_ms else 0.0), "bold"), "")
    )
    return Table(columns, rows)


def notes(trace: Trace) -> Iterable[tuple[str, str]]:
    """What the picture alone would not tell, and its style."""
    reason = trace.attribute("reason")
    if reason:
        yield f"degraded: {reason}", "yellow"
    for branch in trace.branches():
        if branch.span.is_error:
            yield f"{label_of(branch).removesuffix(' ✗')} on the {branch.span.tier}: {branch.span.status}", "red"
    for clock in trace.clocks:
        way = "behind" if clock.offset_ms > 0 else "ahead"
        within = "" if clock.uncertainty_ms is None else f" (±{ms_text(clock.uncertainty_ms)})"
        yield (
            f"clock of the {clock.tier}: {ms_text(abs(clock.offset_ms))} ms {way}{within}; "
            "its spans are moved to the middle of what waited for them",
            "dim",
        )
    if trace.others:
        yield f"{count_text(len(trace.others), 'span')} at the end: parent not read, the clock as it was", "dim"
    if trace.root.span.parent_id is not None:
        yield f"above all of it: the caller's span {trace.root.span.parent_id}, not read", "dim"


def moment(trace: Trace) -> str:
    return datetime.fromtimestamp(trace.root.start_ns / 1e9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
