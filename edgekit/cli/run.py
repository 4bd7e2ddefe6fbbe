"""`edgekit run`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import ms_text, percent_text, shape_text
from edgekit.errors import DataError

if TYPE_CHECKING:
    from edgekit.runtimes.predict import Prediction

BAR_WIDTH = 24


@make_command(
    """
    edgekit run cats.edgekit --input photo.jpg
    edgekit run cats.edgekit --input photos/ --top 1 --threads 4
    edgekit run minilm.edgekit --input "How far is it to the station?" --json
    edgekit run model.edgekit --input feeds.npz --key release.key.pub
    """,
    name="run",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="FILE|DIR|TEXT",
    help="Image, .npy, .npz or text file, a folder of them, or the text itself; may be given again.",
)
@click.option("--top", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many labels to show.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of the runtime; all cores without it.")
@click.option("--part", metavar="NAME", help="Another part than the default one (`edgekit inspect` lists them).")
@click.option("--provider", metavar="NAME", help="ONNX Runtime's cpu, cuda or tensorrt; the best here without it.")
@click.option(
    "-k", "--key", type=click.Path(path_type=Path), metavar="FILE", help="Run only what this public key has signed."
)
def command(
    out: Output,
    bundle: Path,
    inputs: Sequence[str],
    top: int,
    threads: int | None,
    part: str | None,
    provider: str | None,
    key: Path | None,
) -> None:
    """Run BUNDLE on each input: the most likely labels where it is a classifier, else the outputs."""
    from edgekit.bundle import Bundle
    from edgekit.runtimes.load import load
    from edgekit.runtimes.predict import Predictor

    with Bundle.open(bundle, key) as opened:
        sources = _sources(inputs, takes_text=getattr(opened.manifest.preprocess, "kind", "") == "text")
        with load(opened, part=part, threads=threads, provider=provider) as session:
            predictor = Predictor(opened, session)
            results = []
            for source in sources:
                prediction = predictor.predict(source, count=top)
                if out.json:
                    results.append({"input": str(source), **prediction.to_json()})
                elif len(sources) == 1:
                    _show_one(out, prediction)
                else:
                    out.line(_line(source, prediction))
    first = {key: value for key, value in results[0].items() if key != "input"} if len(results) == 1 else {}
    out.emit({"bundle": str(bundle), "format": session.format, "threads": threads, "results": results, **first})


def _sources(inputs: Sequence[str], *, takes_text: bool) -> list[str | Path]:
    """Files of folders, files, and for a text model what is neither. Raises DataError for a path that is not there."""
    from edgekit.runtimes.preprocess import sample_files

    sources: list[str | Path] = []
    for text in inputs:
        path = Path(text)
        if _exists(path):
            sources += sample_files(path) if path.is_dir() else [path]
        elif takes_text:
            sources.append(text)
        else:
            raise DataError(f"no file at {text}", hint="--input takes an image, a .npy or .npz file, or a folder")
    return sources


def _exists(path: Path) -> bool:
    """A long text is no path: some systems raise instead of saying so."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _show_one(out: Output, prediction: Prediction) -> None:
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


def _line(source: str | Path, prediction: Prediction) -> str:
    """One line an input: what a pipe can cut by tabs."""
    if prediction.top:
        answer = ", ".join(f"{label} {percent_text(share)}" for label, share in prediction.top)
    else:
        answer = ", ".join(f"{name} {shape_text(value.shape)}" for name, value in prediction.outputs.items())
    return f"{source}\t{answer}\t{_total_ms(prediction)} ms"


def _total_ms(prediction: Any) -> str:
    return ms_text(sum(prediction.latency_ms.values()))
