"""`edgekit trace`"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.options import certificate_option, file_option, option
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.streams import is_terminal, printable
from edgekit.cli.trace_report import STATUS_STYLES, head, moment, notes, payload, stage_table
from edgekit.cli.trace_view import Line, flame, legend, plain_text
from edgekit.cli.wording import count_text, ms_text
from edgekit.errors import DataError, UsageError

if TYPE_CHECKING:
    from edgekit.runtimes.tracing.files import Reading
    from edgekit.runtimes.tracing.joining import Trace

WIDTH, NARROWEST, WIDEST = 100, 72, 140
SHORT_ID = 12
NEAREST = 3

LAST, SLOWEST = "last", "slowest"
RECORD = "record some: edgekit run BUNDLE --input X --edge URL --trace device.jsonl, edgekit serve BUNDLE --trace FILE"


@make_command(
    """
    edgekit trace --from traces/
    edgekit trace last --from device.jsonl --from edge.jsonl --from cloud.jsonl
    edgekit trace 4bf92f35 --from device.jsonl --node http://edge:8101
    edgekit trace slowest --node https://edge:8101 --token-file token --json
    """,
    name="trace",
)
@click.argument("request", required=False)
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Span files of any tier, or folders of *.jsonl; this folder without --from and --node. May be given again.",
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many traces to list.")
@option(
    "--node", "nodes", heading="Nodes", multiple=True, metavar="URL", help="Ask it for its last: http(s)://host:port."
)
@file_option("--token-file", heading="Nodes", help="What the nodes ask for.")
@file_option("--ca", heading="Nodes", help="Who signed their certificates (PEM).")
@certificate_option("--certificate", heading="Nodes", help="Our own, where they ask for one.")
def command(
    out: Output,
    request: str | None,
    sources: Sequence[Path],
    limit: int,
    nodes: Sequence[str],
    token_file: Path | None,
    ca: Path | None,
    certificate: tuple[Path, Path] | None,
) -> None:
    """Show where the time of REQUEST went, from the device to the cloud: a trace id, the beginning of one, last or
    slowest. Without REQUEST, list the latest.

    Spans of all files and nodes are joined by their trace id. Machines share no clock: where a node's spans lie outside
    of what waited for them, its clock is moved to the middle of it, and the view says so. Uplink and downlink are told
    apart by these clocks; their sum does not depend on them.
    """
    from edgekit.runtimes.tracing.joining import join

    reading = _read(sources, nodes, token_file, ca, certificate)
    traces = join(reading.spans)
    where = _where([*(sources if sources or nodes else ["this folder"]), *nodes])
    if not traces:
        damaged = f"; {count_text(reading.damaged, 'line')} could not be read" if reading.damaged else ""
        raise DataError(f"no spans in {where}{damaged}", hint=RECORD)
    if request is None:
        _list(out, traces, reading, limit)
    else:
        _show(out, _chosen(traces, request, where), reading)
    if reading.damaged:
        out.warn(f"{count_text(reading.damaged, 'line')} in {where} could not be read and left out")


def _read(
    sources: Sequence[Path],
    nodes: Sequence[str],
    token_file: Path | None,
    ca: Path | None,
    certificate: tuple[Path, Path] | None,
) -> Reading:
    from edgekit.runtimes.tracing.fetch import NodeAddress, fetch
    from edgekit.runtimes.tracing.files import read_files

    if not nodes and (token_file or ca or certificate):
        raise UsageError("--token-file, --ca or --certificate without --node", hint="name the node to ask")
    token = ""
    if token_file is not None:
        from edgekit.runtimes.token_file import read_token

        token = read_token(token_file)
    reading = read_files(sources if sources or nodes else [Path()])
    for url in nodes:
        reading += fetch(NodeAddress(url, token, ca, certificate))
    return reading


def _where(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _chosen(traces: Mapping[str, Trace], request: str, where: str) -> Trace:
    """Raises UsageError for no such trace, or for the beginning of several."""
    if request == LAST:
        return list(traces.values())[-1]
    if request == SLOWEST:
        return max(traces.values(), key=lambda trace: trace.total_ms)
    wanted = request.lower()
    found = [trace_id for trace_id in traces if trace_id.startswith(wanted)]
    if len(found) == 1:
        return traces[found[0]]
    if found:
        raise UsageError(
            f"{request!r} begins {len(found)} of {count_text(len(traces), 'trace')}",
            hint="more digits: " + ", ".join(trace_id[: len(wanted) + SHORT_ID] for trace_id in found[:NEAREST]),
        )
    near = sorted(traces, key=lambda trace_id: -_common(trace_id, wanted))[:NEAREST]
    raise UsageError(
        f"no trace {request!r} among the {count_text(len(traces), 'trace')} in {where}",
        hint=f"nearest: {', '.join(trace_id[:SHORT_ID] for trace_id in near)}; or last, slowest",
    )


def _common(one: str, other: str) -> int:
    """Digits that both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _list(out: Output, traces: Mapping[str, Trace], reading: Reading, limit: int) -> None:
    """The latest last, where the eye is when the table has been printed."""
    shown = list(traces.values())[-limit:]
    out.emit(
        {
            "count": len(traces),
            "damaged_lines": reading.damaged,
            "traces": [
                {
                    "trace_id": trace.trace_id,
                    "start_ns": trace.root.start_ns,
                    "model": trace.attribute("model"),
                    "total_ms": trace.total_ms,
                    "tiers": list(trace.tiers),
                    "status": trace.status,
                    "spans": sum(1 for _ in trace.branches()),
                }
                for trace in shown
            ],
        }
    )
    columns = (
        Column("trace", style="cyan"),
        Column("started (UTC)"),
        Column("model"),
        Column("ms", number=True),
        Column("tiers"),
        Column("spans", number=True),
        Column("status"),
    )
    rows: list[tuple[str | Cell, ...]] = [
        (
            trace.trace_id[:SHORT_ID],
            moment(trace),
            str(trace.attribute("model") or "-"),
            ms_text(trace.total_ms),
            " → ".join(trace.tiers),
            str(sum(1 for _ in trace.branches())),
            Cell(trace.status, STATUS_STYLES.get(trace.status, "red")),
        )
        for trace in shown
    ]
    out.table(Table(columns, rows))
    if len(shown) < len(traces):
        out.remark(f"the latest {len(shown)} of {len(traces)}; --limit shows more")


def _show(out: Output, trace: Trace, reading: Reading) -> None:
    from edgekit.runtimes.tracing.stages import stages

    found = stages(trace)
    out.emit(payload(trace, found, reading))
    if out.json:
        return
    _print(head(trace), wraps=True)
    _print(flame(trace, _width()))
    _print([[], legend(found, trace.total_ms), []], wraps=True)
    out.table(stage_table(trace, found))
    said = list(notes(trace))
    if said:
        out.line()
    for text, style in said:
        out.line(text, style)


def _width() -> int:
    """The terminal's, as far as it can be read with ease; 100 where there is none."""
    if not is_terminal(sys.stdout):
        return WIDTH
    from rich.console import Console

    return min(WIDEST, max(NARROWEST, Console(file=sys.stdout).width))


def _print(lines: Sequence[Line], *, wraps: bool = False) -> None:
    """`wraps`: what a narrow terminal has no room for goes to the next line; bars would be torn."""
    lines = [[(printable(text, one_line=True), style) for text, style in line] for line in lines]
    if not is_terminal(sys.stdout):
        for text in plain_text(lines):
            click.echo(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    for line in lines:
        console.print(Text.assemble(*line), no_wrap=not wraps, overflow="fold" if wraps else "crop")
