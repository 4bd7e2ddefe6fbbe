from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result

from edgekit.devices.doctor import Package, diagnose
from edgekit.registry import EXPORTERS

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def test_json_tells_formats_and_packages(invoke_json: InvokeJson) -> None:
    payload = invoke_json("doctor")
    assert set(EXPORTERS) <= {state["format"] for state in payload["formats"]}
    assert {"numpy", "click"} <= {package["name"] for package in payload["packages"]}


def test_what_is_missing_comes_with_its_command(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    state = replace(diagnose().formats[0], format="onnx", can_run=False, run_command='pip install "edgekit[onnx]"')
    wrong = Package("onnxscript", "0.6.0", "==0.7.2", "export", fits=False)
    found = replace(diagnose(), formats=(state, state), packages=(wrong,), tools=())
    monkeypatch.setattr("edgekit.devices.doctor.diagnose", lambda: found)
    text = invoke("doctor").stdout
    assert "another version" in text
    tail = text.split("to add what is missing:\n")[1].splitlines()
    assert tail == ['  pip install "edgekit[onnx]"', '  pip install "onnxscript==0.7.2"']


def test_a_machine_with_everything_is_told_so(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    found = replace(diagnose(), formats=(), packages=(), tools=())
    monkeypatch.setattr("edgekit.devices.doctor.diagnose", lambda: found)
    assert invoke("doctor").stdout.splitlines()[-1] == "nothing is missing"
