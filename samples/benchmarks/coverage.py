"""The coverage matrix: every architecture x ONNX, ExecuTorch, LiteRT x float, int8, each through the parity gate.

    python samples/benchmarks/coverage.py                        # what is missing; resumable; an hour on two cores
    python samples/benchmarks/coverage.py --only swin,bert --fresh
    python samples/benchmarks/coverage.py --retry-failed --json
    python samples/benchmarks/coverage.py --table README.md      # write the table between its markers, run nothing

A cell runs capture -> folding -> quantizer -> exporter -> session, and compares the artifact in its real runtime with
the float module on inputs that calibration did not see. int8 is static or dynamic, whichever `--quantize auto` takes.

Limits. Float: 40 dB, which float32 kernels that add in another order keep by a wide margin, and no wrong operator
does. int8: 12 dB on the worst output, an error of a quarter of the signal. Random weights have no redundancy for
rounding errors to vanish in: trained nets stand far higher, and a wrong scale or a misread layout far lower.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.exporters.base import Exporter
    from edgekit.model import Model

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULTS = HERE / "results" / "coverage.json"
PATHS = re.compile(r"/\S*/(?=\S)")  # where this machine keeps its packages says nothing to a reader
CELLS = REPOSITORY / "out" / "coverage"
DEVICE = "x86-server"
FORMATS = ("onnx", "executorch", "litert")
PRECISIONS = ("fp32", "int8")
LIMIT_DB = {"fp32": 40.0, "int8": 12.0}
BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"
PACKAGES = ("torch", "torchao", "transformers", "onnxruntime", "executorch", "litert-torch", "ai-edge-litert")
MAX_ERROR_CHARS = 400
BATCH = 8  # architectures for one process: the imports take longer than an export, and a crash costs one restart
Wanted = tuple[str, str, str]


@dataclass(frozen=True)
class Cell:
    """`method`: the quantizer used. `stage`: where it stopped (capture, quantize, export, run, gate, crash), or ""."""

    architecture: str
    format: str
    precision: str
    method: str = ""
    sqnr_db: float | None = None
    stage: str = ""
    error: str = ""
    size_bytes: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.stage

    @property
    def file_name(self) -> str:
        return f"{self.architecture}.{self.format}.{self.precision}.json"


class StageError(Exception):
    """A cell stopped in `stage`; `method` is the quantizer that was at work."""

    def __init__(self, stage: str, text: str, method: str = "", sqnr_db: float | None = None) -> None:
        self.stage, self.method, self.sqnr_db = stage, method, sqnr_db
        super().__init__(text)


def short(error: BaseException) -> str:
    """One line that names the error's kind and says what it says, without the hint."""
    text = getattr(error, "message", "") or str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"[:MAX_ERROR_CHARS]


def prepare(architecture: str) -> Model:
    """The captured and folded Model. Raises StageError."""
    from coverage_models import ARCHITECTURES

    from edgekit.passes.capture import Capture
    from edgekit.passes.fold import FoldBatchNorm

    try:
        return FoldBatchNorm()(Capture()(ARCHITECTURES[architecture].build()))
    except Exception as error:
        raise StageError("capture", short(error)) from error


def automatic_method(model: Model, exporter: Exporter) -> str:
    """The integer precision that `--quantize auto` proposes for `model` in this format. Raises StageError."""
    from edgekit.devices.device import load_device
    from edgekit.quantizers.quantize import proposed_precisions

    runs = load_device(DEVICE).precisions(exporter.format)
    proposed = proposed_precisions(model, "auto", exporter.precisions, runs, exporter.format, DEVICE)
    integers = [precision for precision in proposed if precision.startswith("int8")]
    if not integers:
        raise StageError("quantize", f"{exporter.format} has no integer precision for this model")
    return integers[0]


def quantized(model: Model, exporter: Exporter, method: str) -> Model:
    """Quantized as `--quantize auto` does it, less learned rounding, which takes minutes and changes no operator."""
    from edgekit.devices.device import load_device
    from edgekit.progress import silent
    from edgekit.quantizers.quantize import QuantizerOptions, quantize

    options = QuantizerOptions(learned_rounding=False)
    return quantize(model, method, exporter.scheme(load_device(DEVICE)), options, (), silent)


def artifact_sqnr(original: Model, model: Model, exporter: Exporter, folder: Path) -> tuple[float, int]:
    """SQNR in dB of the worst output of the artifact against `original`, and the artifact's bytes."""
    from edgekit.devices.device import load_device
    from edgekit.parity import compare, run_model, run_session
    from edgekit.runtimes.session import SessionOptions

    try:
        artifact = exporter.export(model, folder, load_device(DEVICE))
    except Exception as error:
        raise StageError("export", short(error)) from error
    try:
        with artifact.open(model, SessionOptions(threads=1)) as session:
            actual = run_session(session, original.held_out)
    except Exception as error:
        raise StageError("run", short(error)) from error
    return compare("artifact", run_model(original, original.held_out), actual).sqnr_db, artifact.size_bytes


def run_cell(original: Model, format: str, precision: str) -> Cell:
    """Every exception becomes a failed cell: the matrix is there to show them."""
    from edgekit.registry import EXPORTERS

    start = time.perf_counter()
    method = "" if precision == "fp32" else "int8"
    try:
        exporter: Exporter = EXPORTERS.load(format)()
        model = original
        if precision != "fp32":
            method = automatic_method(original, exporter)
            try:
                model = quantized(original, exporter, method)
            except Exception as error:
                raise StageError("quantize", short(error)) from error
        with tempfile.TemporaryDirectory(prefix="edgekit-coverage-") as folder:
            sqnr_db, size_bytes = artifact_sqnr(original, model, exporter, Path(folder))
        if not sqnr_db >= LIMIT_DB[precision]:
            raise StageError("gate", f"SQNR {sqnr_db:.1f} dB, allowed {LIMIT_DB[precision]:g}", method, sqnr_db)
    except StageError as error:
        seconds = round(time.perf_counter() - start, 1)
        return Cell(original.name, format, precision, method, error.sqnr_db, error.stage, str(error), 0, seconds)
    except Exception as error:
        return Cell(original.name, format, precision, method, None, "export", short(error))
    seconds = round(time.perf_counter() - start, 1)
    return Cell(original.name, format, precision, method, round(min(sqnr_db, 200.0), 1), "", "", size_bytes, seconds)


def work(wanted: list[Wanted], folder: Path) -> None:
    """Runs cells, those of an architecture in a row, in this process and writes each to `folder` as it ends."""
    import torch

    torch.set_num_threads(1)
    for architecture, group in itertools.groupby(wanted, key=lambda one: one[0]):
        try:
            original: Model | StageError = prepare(architecture)
        except StageError as error:
            original = error
        for _, format, precision in group:
            if isinstance(original, StageError):
                cell = Cell(architecture, format, precision, stage=original.stage, error=str(original))
            else:
                cell = run_cell(original, format, precision)
            write_cell(cell, folder)


def cell_of(text: str) -> Wanted:
    architecture, format, precision = text.split(":")
    return architecture, format, precision


def write_cell(cell: Cell, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / cell.file_name
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(cell)), encoding="utf-8")
    draft.rename(path)


def read_cell(architecture: str, format: str, precision: str, folder: Path) -> Cell | None:
    path = folder / Cell(architecture, format, precision).file_name
    return Cell(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def missing(wanted: list[Wanted], folder: Path) -> list[Wanted]:
    return [one for one in wanted if read_cell(*one, folder) is None]


def supervise(wanted: list[Wanted], folder: Path, limit_s: float) -> None:
    """Runs `work` in a process of its own. Where a converter takes the process down, or takes longer than `limit_s`,
    the cell at work has failed and the rest goes on in another process."""
    while wanted:
        command = [sys.executable, __file__, "--folder", str(folder), "--worker", " ".join(map(":".join, wanted))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with tempfile.TemporaryFile("w+") as log:
            reason = watch(subprocess.Popen(command, stdout=log, stderr=log, env=environment), wanted, folder, limit_s)
            log.seek(0)
            tail = " ".join(line.strip() for line in log.read().splitlines()[-3:])
        wanted = missing(wanted, folder)
        if wanted:
            error = f"{reason}: {tail}"[:MAX_ERROR_CHARS]
            write_cell(Cell(*wanted[0], stage="crash", error=error), folder)
            wanted = wanted[1:]


def watch(process: subprocess.Popen[bytes], wanted: list[Wanted], folder: Path, limit_s: float) -> str:
    """Waits for the process to end; ends it where no cell was finished for `limit_s`. Says how it ended."""
    left, since = len(wanted), time.monotonic()
    while process.poll() is None:
        time.sleep(0.5)
        now = len(missing(wanted, folder))
        if now < left:
            left, since = now, time.monotonic()
        elif time.monotonic() - since > limit_s:
            process.kill()
            process.wait()
            return f"not done after {limit_s:.0f} s"
    return f"the process ended with {process.returncode}"


def run_matrix(names: list[str], folder: Path, jobs: int, limit_s: float, *, fresh: bool, retry_failed: bool) -> None:
    """Fills `folder` with the cells of `names` that it lacks."""
    every = [(name, format, precision) for name in names for format in FORMATS for precision in PRECISIONS]
    for one in every:
        known = read_cell(*one, folder)
        if known is not None and (fresh or (retry_failed and not known.passed)):
            (folder / known.file_name).unlink()
    wanted = missing(every, folder)
    architectures = list(dict.fromkeys(one[0] for one in wanted))
    batches = [architectures[start : start + BATCH] for start in range(0, len(architectures), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(supervise, [o for o in wanted if o[0] in batch], folder, limit_s) for batch in batches]
        for task in concurrent.futures.as_completed(tasks):
            task.result()
            done = [cell for one in every if (cell := read_cell(*one, folder)) is not None]
            passed = sum(cell.passed for cell in done)
            print(f"{len(done)} of {len(every)} cells done, {passed} pass", file=sys.stderr)


def collect(folder: Path, names: list[str]) -> dict[str, Any]:
    """What results/coverage.json holds."""
    cells = [
        cell
        for name in names
        for format in FORMATS
        for precision in PRECISIONS
        if (cell := read_cell(name, format, precision, folder)) is not None
    ]
    passed = sum(cell.passed for cell in cells)
    return {
        "schema_version": 1,
        "machine": {"arch": platform.machine(), "python": platform.python_version(), "device": DEVICE},
        "versions": {package: version(package) for package in PACKAGES},
        "limit_db": LIMIT_DB,
        "passed": passed,
        "cells": [
            {
                key: PATHS.sub("", value) if isinstance(value, str) else value
                for key, value in asdict(cell).items()
                if value not in ("", None) and key != "seconds"
            }
            for cell in cells
        ],
        "total": len(cells),
        "share": round(passed / len(cells), 4) if cells else 0.0,
    }


def markdown(result: dict[str, Any], families: dict[str, str]) -> str:
    """The table: SQNR in dB per cell, `d` for dynamic int8, or where and why the cell stopped."""
    rows: dict[str, dict[tuple[str, str], Cell]] = {}
    for entry in result["cells"]:
        cell = Cell(**entry)
        rows.setdefault(cell.architecture, {})[cell.format, cell.precision] = cell
    columns = [(format, precision) for format in FORMATS for precision in PRECISIONS]
    lines = [
        f"{result['passed']} of {result['total']} cells ({100 * result['share']:.1f} %) pass: SQNR in dB of the "
        f"artifact in its runtime against the float module, at least {LIMIT_DB['fp32']:g} in "
        f"float and {LIMIT_DB['int8']:g} in int8; d: dynamic int8. Random weights, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f", {result['machine']['arch']}.",
        "",
        "| family | architecture | " + " | ".join(f"{format} {precision}" for format, precision in columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    stopped = []
    for name, cells in rows.items():
        texts = []
        for column in columns:
            if column not in cells:
                texts.append("")
            elif (cell := cells[column]).passed:
                texts.append(f"{cell.sqnr_db:.0f}{' d' if cell.method == 'int8-dynamic' else ''}")
            else:
                stopped.append(cell)
                texts.append(f"{cell.stage} [{len(stopped)}]")
        lines.append(f"| {families[name]} | {name} | " + " | ".join(texts) + " |")
    for number, cell in enumerate(stopped, 1):
        why = cell.error.replace("|", "\\|").replace("<", "&lt;")
        lines.append(
            f"{'' if number > 1 else chr(10)}{number}. {cell.architecture}, {cell.format} {cell.precision}: {why[:200]}"
        )
    return "\n".join(lines)


def write_table(document: Path, table: str) -> None:
    """Replaces what stands between the two markers in `document`. Raises ValueError where they are missing."""
    text = document.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} lacks the lines {BEGIN} and {END}")
    document.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="architectures, comma-separated")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=600, help="for one cell")
    parser.add_argument("--folder", type=Path, default=CELLS, help="where cells are kept between runs")
    parser.add_argument("--fresh", action="store_true", help="run again what is there")
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only write the committed results' table into FILE")
    parser.add_argument("--record", action="store_true", help="write results/coverage.json although --only is given")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work([cell_of(one) for one in options.worker.split()], options.folder)
        return 0
    from coverage_models import ARCHITECTURES

    families = {name: row.family for name, row in ARCHITECTURES.items()}
    if options.table:
        write_table(options.table, markdown(json.loads(RESULTS.read_text(encoding="utf-8")), families))
        return 0
    names = options.only.split(",") if options.only else list(ARCHITECTURES)
    unknown = sorted(set(names) - set(ARCHITECTURES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(ARCHITECTURES)}")
    run_matrix(
        names, options.folder, options.jobs, options.limit_s, fresh=options.fresh, retry_failed=options.retry_failed
    )
    result = collect(options.folder, names)
    if options.record or not options.only:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else markdown(result, families))
    return 0


if __name__ == "__main__":
    sys.exit(main())
