"""What `edgekit run` shows of an answer: labels with bars, or the outputs; of several inputs a line each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import ms_text, percent_text, shape_text

if TYPE_CHECKING:
    from edgekit.runtimes.predict import Prediction

BAR_WIDTH = 24


def show_one(out: Output, prediction: Prediction) -> None:
    if prediction.top:
        rows: list[tuple[str | Cell, ...]] = [
            (label, percent_text(share), Cell("█" * round(BAR_WIDTH * share), "cyan"))
            for label, share in prediction.top
        ]
        out.table(Table((Column("label", style="bold"), Column("probability", number=True), Column("")), rows))
    else:
        out.table(_outputs(prediction))
    out.line()
    out.line(_latency(prediction))


def _outputs(prediction: Prediction) -> Table:
    columns = (
        Column("output", style="cyan"),
        Column("dtype"),
        Column("shape"),
        Column("min", number=True),
        Column("mean", number=True),
        Column("max", number=True),
        Column("first values"),
    )
    rows = []
    for name, value in prediction.outputs.items():
        figures = [f"{figure:.4g}" for figure in (value.min(), value.mean(), value.max())] if value.size else ["-"] * 3
        start = ", ".join(f"{entry:.4g}" for entry in value.reshape(-1)[:4])
        rows.append((name, str(value.dtype), shape_text(value.shape), *figures, start))
    return Table(columns, rows)


def _latency(prediction: Prediction) -> str:
    split = ", ".join(f"{stage} {ms_text(latency)}" for stage, latency in prediction.latency_ms.items())
    return f"{ms_text(sum(prediction.latency_ms.values()))} ms: {split}"


def line_of(source: str | Path, prediction: Prediction) -> str:
    """One line an input: what a pipe can cut by tabs."""
    if prediction.top:
        answer = ", ".join(f"{label} {percent_text(share)}" for label, share in prediction.top)
    else:
        answer = ", ".join(f"{name} {shape_text(value.shape)}" for name, value in prediction.outputs.items())
    return f"{source}\t{answer}\t{_total_ms(prediction)} ms"


def _total_ms(prediction: Prediction) -> str:
    return ms_text(sum(prediction.latency_ms.values()))
