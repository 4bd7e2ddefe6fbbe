"""A fast part of the coverage matrix (samples/benchmarks/coverage.py): one architecture of each kind, every cell."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgekit.model import Model

BENCHMARKS = Path(__file__).resolve().parents[1] / "samples" / "benchmarks"
ARCHITECTURES = ("resnet", "vit", "minilm", "llama")  # convolutional, ViT, text encoder, decoder without cache
FAMILIES = {
    "convolutional",
    "ViT",
    "hierarchical",
    "detection",
    "segmentation",
    "audio",
    "text encoder",
    "decoder",
}


@pytest.fixture(scope="module")
def matrix() -> Iterator[Any]:
    """The script as a module, under a name of its own: `coverage` is another package's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("edgekit_coverage", BENCHMARKS / "coverage.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        module.prepare = cache(module.prepare)
        yield module


@pytest.fixture
def rows(matrix: Any) -> dict[str, Any]:
    from coverage_models import ARCHITECTURES as ROWS

    return dict(ROWS)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("format", ["onnx", "executorch", "litert"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cell_passes_the_parity_gate(matrix: Any, architecture: str, format: str, precision: str) -> None:
    original: Model = matrix.prepare(architecture)
    cell = matrix.run_cell(original, format, precision)
    assert cell.passed, f"{cell.stage}: {cell.error}"
    assert cell.sqnr_db >= matrix.LIMIT_DB[precision]
    assert cell.size_bytes > 0


def test_matrix_has_at_least_30_architectures_of_every_family(rows: dict[str, Any]) -> None:
    assert len(rows) >= 30
    assert {row.family for row in rows.values()} == FAMILIES


def test_same_seed_builds_the_same_model(rows: dict[str, Any]) -> None:
    first, second = rows["mobilenet-v1"].build(), rows["mobilenet-v1"].build()
    state = second.module.state_dict()
    assert all(value.equal(state[name]) for name, value in first.module.state_dict().items())
    assert first.example_inputs["pixel_values"].equal(second.example_inputs["pixel_values"])


def test_failed_cell_names_stage_and_reason(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.errors import UnsupportedOperatorError

    def refuse(*_: object) -> None:
        raise UnsupportedOperatorError("onnx", "aten.median")

    monkeypatch.setattr("edgekit.exporters.onnx_exporter.OnnxExporter.export", refuse)
    cell = matrix.run_cell(matrix.prepare("resnet"), "onnx", "fp32")
    assert not cell.passed
    assert cell.stage == "export"
    assert "aten.median" in cell.error


def test_crash_of_the_worker_fails_its_cell_and_the_rest_goes_on(
    matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker here is a script that writes cells until it meets `litert`, where it dies."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, pathlib, json\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "for name in sys.argv[4].split():\n"
        "    architecture, format, precision = name.split(':')\n"
        "    if format == 'litert': os._exit(7)\n"
        "    row = dict(architecture=architecture, format=format, precision=precision, sqnr_db=50.0)\n"
        "    (folder / f'{architecture}.{format}.{precision}.json').write_text(json.dumps(row))\n"
    )
    monkeypatch.setattr(matrix, "__file__", str(script))
    cells = tmp_path / "cells"
    cells.mkdir()
    matrix.supervise([("a", "litert", "fp32"), ("a", "onnx", "fp32"), ("b", "onnx", "fp32")], cells, 60)
    crashed = matrix.read_cell("a", "litert", "fp32", cells)
    assert (crashed.stage, crashed.error.split(":")[0]) == ("crash", "the process ended with 7")
    assert matrix.read_cell("a", "onnx", "fp32", cells).passed
    assert matrix.read_cell("b", "onnx", "fp32", cells).passed


def test_table_replaces_what_stands_between_its_markers(matrix: Any, tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    passed = matrix.Cell("vit", "onnx", "fp32", sqnr_db=120.0, size_bytes=1)
    dynamic = matrix.Cell("vit", "onnx", "int8", "int8-dynamic", sqnr_db=31.0, size_bytes=1)
    stopped = matrix.Cell("vit", "litert", "fp32", stage="export", error="UnsupportedOperatorError: aten.foo | bar")
    for cell in (passed, dynamic, stopped):
        matrix.write_cell(cell, cells)
    result = matrix.collect(cells, ["vit"])
    assert (result["passed"], result["total"]) == (2, 3)
    document = tmp_path / "README.md"
    document.write_text(f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n")
    matrix.write_table(document, matrix.markdown(result, {"vit": "ViT"}))
    text = document.read_text()
    assert "| ViT | vit | 120 | 31 d |  |  | export [1] |  |" in text
    assert "\n1. vit, litert fp32: UnsupportedOperatorError: aten.foo \\| bar" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text


def test_table_refuses_a_document_without_markers(matrix: Any, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("nothing here\n")
    with pytest.raises(ValueError, match="lacks the lines"):
        matrix.write_table(document, "table")
