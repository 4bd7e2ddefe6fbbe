"""`edgekit link`"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.options import FiniteRange
from edgekit.cli.output import Output
from edgekit.cli.streams import is_terminal
from edgekit.cli.wording import plain, size_text
from edgekit.errors import OutputError, UsageError
from edgekit.runtimes.loopback import is_loopback

if TYPE_CHECKING:
    from edgekit.planning.traces import Trace
    from edgekit.runtimes.link.emulator import LinkEmulator, LinkState

STEP_S = 0.25


@make_command(
    """
    edgekit link --listen 127.0.0.1:9000 --to 127.0.0.1:8102 --link 10mbps,20ms
    edgekit link --listen 127.0.0.1:9000 --to 127.0.0.1:8102 --trace lte
    edgekit link --listen 127.0.0.1:0 --to 127.0.0.1:8102 --trace walk.csv --once --json
    edgekit link --write-trace lte -o lte.csv
    """,
    name="link",
)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
@click.option("--to", metavar="HOST:PORT", help="The node behind the link.")
@click.option("--link", "link_text", metavar="LINK", help="A steady link: bandwidth, round trip and loss, 10mbps,20ms.")
@click.option("--trace", metavar="NAME|FILE", help="A link that changes: a trace by name, or its CSV file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of traces by name, and of chance.")
@click.option("--loop/--once", "loops", default=True, help="At the end of the trace begin again (default), or end.")
@click.option("--duration", type=FiniteRange(0, min_open=True), metavar="SECONDS", help="End after so long.")
@click.option(
    "--outage-limit",
    type=FiniteRange(0),
    metavar="SECONDS",
    help="Break connections in an outage that lasts longer.",
)
@click.option("--allow-remote", is_flag=True, help="Listen on an address that others reach.")
@click.option("--write-trace", metavar="NAME", help="Write a trace by name to a CSV file instead.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The file for --write-trace.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(
    out: Output,
    listen: str | None,
    to: str | None,
    link_text: str | None,
    trace: str | None,
    seed: int,
    loops: bool,
    duration: float | None,
    outage_limit: float | None,
    allow_remote: bool,
    write_trace: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Stand between a device and its node as a slow, late, uneven link: a TCP proxy that shapes both directions.

    Ends on Ctrl-C, on SIGTERM, after --duration, and with --once at the end of the trace.
    """
    if write_trace is not None:
        _write(out, write_trace, seed, output, force)
        return
    if listen is None or to is None or (link_text is None) == (trace is None):
        raise UsageError(
            "a link needs --listen, --to, and one of --link and --trace",
            hint="like --listen 127.0.0.1:9000 --to 127.0.0.1:8102 --link 10mbps,20ms",
        )
    if output is not None:
        raise UsageError("--output is for --write-trace alone")
    _run(out, listen, to, _trace(out, link_text, trace, seed, loops), seed, loops, duration, outage_limit, allow_remote)


def _trace(out: Output, link_text: str | None, trace: str | None, seed: int, loops: bool) -> Trace:
    from edgekit.cli.quantities import read_link
    from edgekit.runtimes.link.traces import Conditions, Trace, open_trace

    if trace is not None:
        return open_trace(trace, seed).looped(loops)
    assert link_text is not None
    return Trace.constant(Conditions.of(read_link(out, link_text, "--link")), link_text).looped()


def _run(
    out: Output,
    listen: str,
    to: str,
    trace: Trace,
    seed: int,
    loops: bool,
    duration: float | None,
    outage_limit: float | None,
    allow_remote: bool,
) -> None:
    from edgekit.runtimes.link.emulator import LinkEmulator, parse_address

    host, port = parse_address(listen, "--listen")
    if not allow_remote and not is_loopback(host):
        raise UsageError(
            f"--listen {host} may be reached from other machines, allowed loopback addresses",
            hint="use 127.0.0.1, or say --allow-remote: whoever reaches the port reaches the node behind it",
        )
    ends = [seconds for seconds in (duration, None if loops else trace.duration_s) if seconds is not None]
    emulator = LinkEmulator((host, port), parse_address(to, "--to"), trace, seed=seed, outage_limit_s=outage_limit)
    with emulator:
        if not out.json:
            out.line(f"listening on {emulator.address}, to {to}, as {trace.name}")
            sys.stdout.flush()
        else:
            out.remark(f"listening on {emulator.address}, to {to}, as {trace.name}")
        state = _watch(out, emulator, min(ends, default=None))
    out.emit({"listen": emulator.address, "to": to, "trace": trace.name, **plain(state)})
    if not out.json:
        out.line(
            f"ended after {state.elapsed_s:.1f} s: {size_text(state.up_bytes)} up, {size_text(state.down_bytes)} down"
        )


def _watch(out: Output, emulator: LinkEmulator, seconds: float | None) -> LinkState:
    """Until the time is over or somebody asks to end; what has gone through by then."""
    live = is_terminal(sys.stderr) and not out.quiet
    end = None if seconds is None else time.monotonic() + seconds
    never = threading.Event()
    try:
        while end is None or time.monotonic() < end:
            never.wait(STEP_S if end is None else max(0.0, min(STEP_S, end - time.monotonic())))
            if live:
                click.echo(f"\r\x1b[2K{status_text(emulator.state())}", nl=False, err=True)
    except KeyboardInterrupt:
        pass  # Ctrl-C and SIGTERM are how a link usually ends
    state = emulator.state()
    if live:
        click.echo("\r\x1b[2K", nl=False, err=True)
    return state


def status_text(state: LinkState) -> str:
    """`12.3 s  9.81 Mbit/s, 44 ms  up 1.2 MB  down 30 kB  2 connections`"""
    now = state.conditions
    link = f"{now.bandwidth_mbps:.3g} Mbit/s, {now.rtt_ms:.0f} ms" if state.is_up else "down"
    refused = f"  {state.refused} refused" if state.refused else ""
    return (
        f"{state.elapsed_s:.1f} s  {link}  up {size_text(state.up_bytes)}  down {size_text(state.down_bytes)}  "
        f"{state.connections} open{refused}"
    )


def _write(out: Output, name: str, seed: int, output: Path | None, force: bool) -> None:
    from edgekit.runtimes.link.traces import trace_named, write_trace

    trace = trace_named(name, seed)
    target = output if output is not None else Path(f"{name}.csv")
    if target.exists() and not force:
        raise OutputError(f"{target} exists", hint="--force replaces it, -o names another")
    write_trace(trace, target)
    out.emit({"trace": name, "seed": seed, "file": str(target), "duration_s": trace.duration_s})
    out.line(f"written: {target}; use it with  edgekit link --trace {target}")
