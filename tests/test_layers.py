from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

REPOSITORY = Path(__file__).resolve().parent.parent
RUN_SIDE = (
    "edgekit.bundle",
    "edgekit.devices.device",
    "edgekit.devices.latency",
    "edgekit.devices.probe",
    "edgekit.evaluation.embeddings",
    "edgekit.evaluation.intervals",
    "edgekit.evaluation.retrieval",
    "edgekit.runtimes.load",
    "edgekit.runtimes.predict",
    "edgekit.runtimes.preprocess",
    "edgekit.runtimes.timing",
    "edgekit.runtimes.onnx_session",
    "edgekit.runtimes.litert_session",
    "edgekit.runtimes.remote_session",
    "edgekit.runtimes.coordinator.connect",
    "edgekit.runtimes.server",
    "edgekit.runtimes.ray_engine",
    "edgekit.deploy",
    "edgekit.runtimes.codecs.base",
    "edgekit.runtimes.link.emulator",
    "edgekit.planning.choose",
    "edgekit.planning.simulate",
    "edgekit.report.metrics",
    "edgekit.cli.main",
)

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "executorch", "transformers", "torchao"}:
            raise ImportError(f"the run side imported {name}")
sys.meta_path.insert(0, Block())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_the_run_side_imports_without_torch() -> None:
    done = python(BLOCK_TORCH + "".join(f"import {name}\n" for name in RUN_SIDE) + "print('fine')")
    assert done.stdout.strip() == "fine", done.stderr


def test_import_edgekit_loads_nothing_of_its_own() -> None:
    done = python("import sys, edgekit; print([m for m in sys.modules if m.startswith('edgekit.') or m == 'numpy'])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("wing", ["exporters", "quantizers", "runtimes", "devices"])
def test_a_wing_refuses_its_bare_name(wing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {wing}"], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert done.returncode != 0
    assert f"import edgekit.{wing}" in done.stderr


def test_every_public_name_loads_and_is_documented() -> None:
    for name in edgekit.__all__:
        assert (getattr(edgekit, name).__doc__ or "").strip(), f"{name} has no docstring"
    assert set(edgekit.__all__) <= set(dir(edgekit))


def test_an_unknown_public_name_raises() -> None:
    with pytest.raises(AttributeError, match="exprot"):
        getattr(edgekit, "exprot")  # noqa: B009 - the attribute lookup is what is tested
