"""What is LiteRT's own; test_session_contract.py has what every session promises."""

from __future__ import annotations

import sys
import types

import pytest

from edgekit.errors import MissingExtraError
from edgekit.runtimes.litert_session import _numbered, load_interpreter_class


def test_the_older_package_is_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    older = types.ModuleType("tflite_runtime.interpreter")
    older.Interpreter = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", older)
    assert load_interpreter_class() is older.Interpreter  # type: ignore[attr-defined]


def test_without_any_interpreter_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"edgekit\[litert\]"):
        load_interpreter_class()


def test_tensors_are_ordered_by_number_not_by_text() -> None:
    details = {f"args_{number}": {"index": number} for number in (10, 2, 0)}
    assert _numbered(details) == [(0, {"index": 0}), (2, {"index": 2}), (10, {"index": 10})]


def test_names_without_numbers_have_no_order() -> None:
    assert _numbered({"image": {"index": 0}}) is None
