"""The docstrings of Python's standard library as text to learn from (Python Software Foundation License 2.0)."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

from edgekit.errors import DataError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(library: Path | None = None) -> list[str]:
    """Of every module, class and function below `library` (this interpreter's own), each once, by file and place.

    Raises DataError where there is none.
    """
    root = library or Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            found |= dict.fromkeys(_of_file(path))
    if not found:
        raise DataError(f"no docstrings below {root}", hint="give the folder of a Python's standard library")
    return list(found)


def _of_file(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        # The library ships files that are meant not to parse.
        return []
    documented = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    return [text for node in documented if (text := ast.get_docstring(node))]
