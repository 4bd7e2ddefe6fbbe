"""`edgekit compare`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.drawing import check_path, draw
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import db_text, ms_text, number_text, size_text
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.report.model import EvaluationReport, Quality

COLUMNS = (
    Column("bundle", style="cyan"),
    Column("artifact"),
    Column("lost", number=True),
    Column("SQNR dB", number=True),
    Column("size", number=True),
    Column("here ms", number=True),
    Column("device ms", number=True),
    Column("board mJ", number=True),
    Column("sends at least", number=True),
    Column(""),
)


@dataclass(frozen=True)
class Compared:
    """`lost` in points against the float model; `sends_bytes`: the least on the wire that loses no more than the export
    allowed, None where nothing is split. `made_by`: the passes. `beaten_by`: a bundle that is at least as good in
    every figure and better in one."""

    bundle: str
    model: str
    device: str
    artifact: str
    isa: str
    threads: int
    lost: float | None
    sqnr_db: float | None
    size_bytes: int
    host_ms: float | None
    device_ms: float | None
    energy_mj: float | None
    sends_bytes: float | None
    made_by: tuple[str, ...]
    beaten_by: str | None = None

    @property
    def figures(self) -> tuple[float | None, ...]:
        """Smaller is better in each."""
        return self.lost, self.size_bytes, self.host_ms, self.device_ms


@make_command(
    """
    edgekit compare float.edgekit int8.edgekit int8-tokens.edgekit
    edgekit compare *.edgekit --plot recipes.png
    edgekit compare a.edgekit b.edgekit --json
    """,
    name="compare",
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw them: .svg, .html or .png.")
@click.option("--force", is_flag=True, help="Replace an existing plot.")
def command(out: Output, bundles: tuple[Path, ...], plot: Path | None, force: bool) -> None:
    """Put BUNDLES side by side: quality, size, latency, energy and bytes, as their reports state them.

    Latency here was measured when each was exported: compare it between exports of one machine. Energy is the whole
    board's for one inference on the device; `edgekit plan` tells what is above idle of it. A bundle that another one
    beats or equals in quality, size and latency is marked.
    """
    if len(bundles) < 2:
        raise UsageError("one bundle, allowed two or more", hint="edgekit inspect shows a single one")
    check_path(plot, force)
    rows = _beaten([_read(path) for path in bundles])
    if plot is not None:
        from edgekit.cli.compare_plot import comparison_shapes

        title = " and ".join(sorted({row.model for row in rows}))
        draw(plot, comparison_shapes(rows, title), title)
    out.emit({"bundles": [asdict(row) for row in rows]})
    out.table(_table(rows))
    if any(row.beaten_by for row in rows):
        out.remark("beaten: no better in points lost, size, or latency here and predicted, and worse in one of them")
    for words in _differences(rows):
        out.warn(words)
    if plot is not None:
        out.remark(f"drawn: {plot}")


def _read(path: Path) -> Compared:
    from edgekit.bundle import Bundle
    from edgekit.report.model import EvaluationReport

    with Bundle.open(path) as opened:
        report = EvaluationReport.from_json(opened.report, f"report.json of {path}")
        return _row(path, opened, report)


def _row(path: Path, bundle: Bundle, report: EvaluationReport) -> Compared:
    manifest = bundle.manifest
    first = manifest.part(manifest.variants[0].parts[0])
    latency = report.latency_ms
    allowed = manifest.provenance.recipe.get("max_drop")
    within = [row.bytes_mean for row in report.split if not isinstance(allowed, int | float) or row.drop <= allowed]
    quality = report.quality
    return Compared(
        bundle=path.name,
        model=manifest.name,
        device=manifest.device,
        artifact=f"{first.format} {first.precision}",
        isa=latency.isa if latency else "",
        threads=latency.threads if latency else 0,
        lost=_lost(quality),
        sqnr_db=quality.sqnr_db if quality else None,
        size_bytes=first.size_bytes + sum(file.size_bytes for file in first.companions),
        host_ms=latency.host if latency else None,
        device_ms=next((entry.p50 for entry in latency.predicted if entry.device == manifest.device), None)
        if latency
        else None,
        energy_mj=report.energy.energy_mj if report.energy else None,
        sends_bytes=min(within, default=None),
        made_by=tuple(line.name for line in manifest.history),
    )


def _lost(quality: Quality | None) -> float | None:
    """Points of accuracy where labels were known, of changed answers or of 100 x (1 - cosine) elsewhere."""
    if quality is None or quality.measure == "sqnr_db":
        return None
    before = quality.float_accuracy if quality.measure == "accuracy" else 1.0
    return None if before is None else 100 * (before - quality.value)


def _beaten(rows: list[Compared]) -> list[Compared]:
    found = []
    for row in rows:
        better = next((other for other in rows if other is not row and _beats(other, row)), None)
        found.append(Compared(**{**asdict(row), "beaten_by": better.bundle if better else None}))
    return found


def _beats(one: Compared, other: Compared) -> bool:
    """Of the same model for the same device, in every figure that both have."""
    if (one.model, one.device) != (other.model, other.device):
        return False
    pairs = [(a, b) for a, b in zip(one.figures, other.figures, strict=True) if a is not None and b is not None]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _table(rows: Sequence[Compared]) -> Table:
    lines = []
    for row in rows:
        mark = f"beaten by {row.beaten_by}" if row.beaten_by else ""
        style = "dim" if row.beaten_by else ""
        texts = (
            row.bundle,
            row.artifact,
            "-" if row.lost is None else f"{row.lost:.2f}",
            db_text(row.sqnr_db),
            size_text(row.size_bytes),
            ms_text(row.host_ms),
            ms_text(row.device_ms),
            number_text(row.energy_mj) if row.energy_mj is not None else "-",
            size_text(row.sends_bytes) if row.sends_bytes is not None else "-",
            mark,
        )
        lines.append([Cell(text, style) for text in texts])
    return Table(COLUMNS, lines)


def _differences(rows: Sequence[Compared]) -> list[str]:
    """What makes the comparison an unfair one."""
    told = []
    facts: dict[str, set[Any]] = {
        "models": {row.model for row in rows},
        "devices": {row.device for row in rows},
        "machines, by their instruction sets and threads": {(row.isa, row.threads) for row in rows if row.isa},
    }
    for name, values in facts.items():
        if len(values) > 1:
            words = ", ".join(
                sorted(value if isinstance(value, str) else f"{value[0]} x {value[1]}" for value in values)
            )
            told.append(f"different {name}: {words}")
    return told
