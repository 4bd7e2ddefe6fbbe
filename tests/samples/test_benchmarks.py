"""The benchmarks' command lines: none of them runs, let alone writes over its results, because of a word it ignores."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "samples" / "benchmarks"
READERS = {"parse_args", "no_options", "command"}


def runs(tree: ast.Module) -> bool:
    """Whether it does something when it is started, as `if __name__ == "__main__"` says."""
    return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body)


SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if runs(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_reads_its_arguments(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text(encoding="utf-8"))
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert called & READERS, f"{name} asks neither argparse nor click for its arguments"


@pytest.mark.parametrize("name", ["codecs", "readme"])
def test_help_is_told_and_nothing_is_written(name: str) -> None:
    kept = [FOLDER / "results" / "codecs.json", FOLDER.parents[1] / "README.md"]
    before = [path.read_bytes() for path in kept]
    script = [sys.executable, str(FOLDER / f"{name}.py")]
    told = subprocess.run([*script, "--help"], capture_output=True, text=True, timeout=60)
    assert (told.returncode, "usage:" in told.stdout) == (0, True), told.stderr
    refused = subprocess.run([*script, "--hlep"], capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "unrecognized arguments" in refused.stderr) == (2, True), refused.stderr
    assert [path.read_bytes() for path in kept] == before
