"""`edgekit fleet telemetry`"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.options import file_option, option
from edgekit.cli.output import Column, Output, Table
from edgekit.errors import MissingExtraError, OutputError, UsageError

if TYPE_CHECKING:
    from edgekit.fleet.client import FleetClient
    from edgekit.fleet.protocol.telemetry import SpanView, TelemetryView

AT_ONCE = 20_000  # rows of a group of the Parquet file
LATEST = 24  # steps that are shown, where the table would have more
_TIME = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds_of(text: str) -> float:
    """`90s`, `15m`, `24h`, `7d`. Raises UsageError."""
    match = _TIME.fullmatch(text.strip())
    if match is None or float(match["number"]) <= 0:
        raise UsageError(f"time {text!r:.40}, allowed a number with s, m, h or d", hint="90s, 15m, 24h, 7d")
    return float(match["number"]) * _SECONDS[match["unit"]]


@make_command(
    """
    edgekit fleet telemetry --group pi
    edgekit fleet telemetry --device pi-7 --since 7d --step 6h --plot pi-7.svg
    edgekit fleet telemetry --select site=plant-3 --since 2d --csv windows.csv
    edgekit fleet telemetry --since 30d --parquet windows.parquet
    """,
    name="telemetry",
)
@option("--device", heading="Whose", default="", metavar="NAME", help="Of one device, by its windows.")
@option("--group", heading="Whose", default="", metavar="NAME", help="Of a group; of everyone without both.")
@option("--select", heading="Whose", default="", metavar="SELECTOR", help="Of the export: board=rpi4,site!=lab.")
@option("--since", heading="When", default="24h", show_default=True, metavar="TIME", help="How far back.")
@option("--step", heading="When", default="1h", show_default=True, metavar="TIME", help="Of the table and the plot.")
@file_option("--plot", heading="Files", help="Latencies, agreement and errors as an SVG file.")
@file_option("--csv", heading="Files", help="Every window, a line each; - for stdout.")
@file_option("--parquet", heading="Files", help="Every window, in columns.")
@reach_options
def telemetry(out: Output, device: str, group: str, select: str, **settings: Any) -> None:
    """What devices measured over time: latency, errors, agreement with the cloud; as a table, a plot, or every window.

    Groups are added up as their windows come in, in steps of five minutes at least; who is in a group counts then.
    """
    since_s, step_s = seconds_of(settings["since"]), seconds_of(settings["step"])
    plot, table, columns = settings["plot"], settings["csv"], settings["parquet"]
    if device and group:
        raise UsageError("--device and --group", hint="give one of them")
    if table is not None and columns is not None:
        raise UsageError("--csv and --parquet", hint="give one of them")
    if out.json and str(table) == "-":
        raise UsageError("--csv - and --json would both write to stdout", hint="--csv FILE, or leave --json out")
    if select and table is None and columns is None:
        raise UsageError("--select without --csv or --parquet", hint="--group NAME for the table")
    until = time.time()
    with reached(settings).open() as client:
        if table is not None or columns is not None:
            target = table if table is not None else columns
            whose = select or _selector(client, device, group)
            _export(out, client, target, whose, until - since_s, until, is_parquet=columns is not None)
            return
        view = client.telemetry(device, group, until - since_s, until, step_s)
    out.emit({"telemetry": view.model_dump(mode="json")})
    if plot is not None:
        from edgekit.cli.telemetry_plot import telemetry_plot

        _write(plot, telemetry_plot(view))
        out.remark(f"written: {plot}")
    _show(out, view)


def _selector(client: FleetClient, device: str, group: str) -> str:
    """Which holds the same devices."""
    if device:
        return f"name={client.device(device).name}"
    return next((one.selector for one in client.groups() if one.name == group), "") if group else ""


def _show(out: Output, view: TelemetryView) -> None:
    if view.cut:
        out.warn("there are more windows than are read at once: the oldest are left out", hint="a shorter --since")
    if not view.spans:
        out.line(f"{view.scope}: nothing was measured since {_moment(view.since)}")
        return
    shown = view.spans[-LATEST:]
    if len(shown) < len(view.spans):
        out.remark(f"the latest {LATEST} of {len(view.spans)} rows; --json has all, --step makes fewer")
    columns = (
        Column("from (UTC)"),
        Column("bundle", style="cyan"),
        *(Column(name, number=True) for name in ("answered", "errors", "agreement", "p50", "p95", "p99")),
    )
    out.table(Table(columns, [_row(span, view.step_s) for span in shown], title=view.scope))


def _row(span: SpanView, step_s: float) -> tuple[str, ...]:
    requests = span.answered + span.errors
    return (
        _moment(span.starts_at, "%H:%M:%S" if step_s % 60 else "%H:%M"),
        span.digest[:12],
        f"{span.answered:,}",
        f"{100 * span.errors / requests:.2f} %" if requests else "-",
        "-" if span.agreement is None else f"{100 * span.agreement:.1f} %",
        *("-" if value is None else f"{value:.4g} ms" for value in (span.p50_ms, span.p95_ms, span.p99_ms)),
    )


def _moment(at: float, time_of_day: str = "%H:%M") -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime(f"%Y-%m-%d {time_of_day}")


def _export(
    out: Output, client: FleetClient, target: Path, selector: str, since: float, until: float, *, is_parquet: bool
) -> None:
    """Raises OutputError; a file that was there before stays until the new one is whole."""
    lines = client.windows(selector, since, until)
    if str(target) == "-" and not is_parquet:
        for line in lines:
            click.echo(line)
        return
    fresh = target.with_name(f".{target.name}.part")
    try:
        with out.working() as progress:
            counted = _counted(lines, lambda count: progress("windows", count, 0))
            count = _write_parquet(fresh, counted) if is_parquet else _write_csv(fresh, counted)
        fresh.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}", hint="choose another file") from error
    finally:
        fresh.unlink(missing_ok=True)
    out.emit({"file": str(target), "windows": count})
    out.line(f"{count:,} windows in {target}")


def _counted(lines: Iterator[str], tell: Any) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number % AT_ONCE == 0:
            tell(number)
        yield line


def _write_csv(path: Path, lines: Iterator[str]) -> int:
    """How many windows."""
    count = -1
    with path.open("w", encoding="utf-8", newline="") as stream:
        for line in lines:
            stream.write(f"{line}\n")
            count += 1
    return max(0, count)


def _write_parquet(path: Path, lines: Iterator[str]) -> int:
    """A group of rows at a time. Raises MissingExtraError."""
    from edgekit.fleet.protocol.telemetry import EXPORTED

    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "parquet", "Parquet") from error
    kinds = {"text": pyarrow.string(), "integer": pyarrow.int64(), "number": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in EXPORTED.items()])
    read = {"text": str, "integer": int, "number": float}
    rows, count = csv.DictReader(lines), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := _next(rows):
            held = {
                name: [read[kind](row[name]) if row[name] else None for row in group] for name, kind in EXPORTED.items()
            }
            writer.write_table(pyarrow.table(held, schema))
            count += len(group)
    return count


def _next(rows: Iterator[dict[str, str]]) -> list[dict[str, str]]:
    return [row for _, row in zip(range(AT_ONCE), rows, strict=False)]


def _write(path: Path, text: str) -> None:
    """Raises OutputError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose another --plot") from error
