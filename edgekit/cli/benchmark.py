"""`edgekit benchmark`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.options import FiniteRange
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.wording import count_text, ms_text, plain, size_text
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.runtimes.timing import Timing


@make_command(
    """
    edgekit benchmark cats.edgekit --threads 1
    edgekit benchmark cats.edgekit --threads 4 --runs 500 --json
    edgekit benchmark minilm.edgekit --size sequence=64
    """,
    name="benchmark",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Threads of the runtime."
)
@click.option(
    "--runs", type=click.IntRange(3, 100_000), default=100, show_default=True, metavar="N", help="Timed runs."
)
@click.option("--limit", type=FiniteRange(0.1), default=60, show_default=True, metavar="SECONDS", help="At most.")
@click.option("--part", metavar="NAME", help="Another part than the default one (`edgekit inspect` lists them).")
@click.option("--provider", metavar="NAME", help="ONNX Runtime's cpu, cuda or tensorrt; the best here without it.")
@click.option(
    "--size", "sizes", multiple=True, metavar="DIM=N", help="Size of a dynamic dimension (1 without); may be repeated."
)
def command(
    out: Output,
    bundle: Path,
    threads: int,
    runs: int,
    limit: float,
    part: str | None,
    provider: str | None,
    sizes: tuple[str, ...],
) -> None:
    """Time BUNDLE on this machine: p50, p95 and memory, in turns with the bare runtime in the same process.

    The inputs are noise of the right shape; preprocessing is not timed (`edgekit run` shows it).
    """
    from edgekit.bundle import Bundle
    from edgekit.runtimes.load import load
    from edgekit.runtimes.timing import benchmark, example_feeds

    with Bundle.open(bundle) as opened, load(opened, part=part, threads=threads, provider=provider) as session:
        feeds = example_feeds(session, sizes=_sizes(sizes))
        with out.working() as progress:
            progress(f"time {session.format}: {count_text(threads, 'thread')}, {count_text(runs, 'run')}", 0, 0)
            timing = benchmark(session, feeds, runs=runs, limit_s=limit)
        kind = session.format
    measured = plain(timing)
    measured["peak_rss_bytes"] = measured.pop("peak_memory_bytes")
    out.emit({"bundle": str(bundle), "format": kind, **measured})
    columns = (Column("", style="cyan"), Column("p50 ms", number=True), Column("p95 ms", number=True))
    rows: list[tuple[str | Cell, ...]] = [
        (f"edgekit ({kind})", Cell(ms_text(timing.p50_ms), "bold"), ms_text(timing.p95_ms)),
        ("bare runtime", ms_text(timing.raw_p50_ms), ms_text(timing.raw_p95_ms)),
    ]
    out.table(Table(columns, rows))
    out.line()
    out.table(
        facts(
            [
                ("overhead", _overhead(timing)),
                ("runs", f"{timing.runs} each, in turns"),
                ("threads", str(timing.threads)),
                ("peak memory", f"{size_text(timing.peak_memory_bytes)} (the whole process)"),
                ("ISA", timing.isa),
            ]
        )
    )


def _overhead(timing: Timing) -> str:
    """From calls next to each other, not from the medians above: the machine's own pace changes between those."""
    low, high = timing.overhead_low_us, timing.overhead_high_us
    if low <= 0:
        return f"none beyond noise: {low:+.0f} to {high:+.0f} us a call (95 % of the median difference)"
    return f"{timing.overhead_us:.0f} us a call ({0.1 * timing.overhead_us / timing.raw_p50_ms:+.1f} %), call by call"


def _sizes(texts: tuple[str, ...]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdecimal() or int(number) < 1:
            raise UsageError(f"--size {text!r}, allowed DIM=N with N above 0", hint="for example  --size sequence=64")
        sizes[name] = int(number)
    return sizes
