from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.runtimes.timing import Timing

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def test_json_sets_the_session_beside_the_bare_runtime(invoke_json: InvokeJson, bundle: Path) -> None:
    payload = invoke_json("benchmark", bundle, "--threads", "1", "--runs", "5")
    assert 0 < payload["p50_ms"] <= payload["p95_ms"]
    assert payload["overhead_ratio"] == pytest.approx(payload["p50_ms"] / payload["raw_p50_ms"])
    assert (payload["threads"], payload["runs"], payload["format"]) == (1, 5, "onnx")
    assert payload["peak_rss_bytes"] > 1_000_000
    assert payload["isa"]


def test_words_give_p50_p95_memory_and_the_instruction_set(invoke: Invoke, bundle: Path) -> None:
    result = invoke("benchmark", bundle, "--runs", "5")
    for wanted in ("p50 ms", "p95 ms", "bare runtime", "peak memory:", "ISA:", "overhead:"):
        assert wanted in result.stdout
    assert "time onnx" in result.stderr
    assert invoke("benchmark", bundle, "--runs", "5", "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (20.0, 60.0, "41 us a call (+2.1 %), call by call"),
        (-1200.0, -500.0, "none beyond noise: -1200 to -500 us a call (95 % of the median difference)"),
        (-10.0, 60.0, "none beyond noise: -10 to +60 us a call (95 % of the median difference)"),
    ],
)
def test_an_overhead_that_noise_may_explain_is_called_none(
    invoke: Invoke, bundle: Path, monkeypatch: pytest.MonkeyPatch, low: float, high: float, words: str
) -> None:
    measured = Timing(1.9, 2.1, 1.9, 1.95, 2.0, 0.97, 41.0, low, high, 5, 1, "x86_64", 1 << 20)
    monkeypatch.setattr("edgekit.runtimes.timing.benchmark", lambda *arguments, **settings: measured)
    assert f"overhead:     {words}" in invoke("benchmark", bundle).stdout


@pytest.mark.parametrize("size", ["sequence", "sequence=0", "=3", "sequence=many", "sequence=3"])
def test_a_size_that_does_not_fit_is_a_usage_error(invoke: Invoke, bundle: Path, size: str) -> None:
    assert invoke("benchmark", bundle, "--size", size, code=2).stderr.startswith("error: ")


@pytest.mark.parametrize(("option", "value"), [("--threads", "0"), ("--runs", "2"), ("--runs", "many")])
def test_an_option_out_of_range_is_a_usage_error(invoke: Invoke, bundle: Path, option: str, value: str) -> None:
    assert option in invoke("benchmark", bundle, option, value, code=2).stderr
