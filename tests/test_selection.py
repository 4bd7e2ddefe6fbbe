from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgekit.devices.device import load_device
from edgekit.devices.latency import Prediction
from edgekit.errors import MissingExtraError, QualityError
from edgekit.model import Model
from edgekit.selection import Built, Candidate, choose, float_twin

MODEL = Model("net", nn.Linear(1, 1), {"x": torch.ones(1, 1)})
PI = load_device("raspberry-pi-5")
ORIN = load_device("jetson-orin-nano")


def built(format: str, precision: str, host_ms: float, device_ms: float, asked: bool = False) -> Built:
    expected = Prediction(device_ms, device_ms / 2, device_ms * 2, (), "compute", calibrated=False)
    return Built(Candidate(format, precision, asked), MODEL, MODEL, host_ms=host_ms, device=expected)


def test_the_fastest_wins_and_the_losers_say_why() -> None:
    rows = [built("onnx", "fp32", 8, 16), built("onnx", "int8", 4, 8), built("litert", "fp32", 9, 17)]
    winner, outcome = choose(rows, PI)
    assert str(winner.candidate) == "onnx int8"
    assert [one.why_not for one in outcome if one.candidate != winner.candidate] == [
        "2.00x the time of onnx int8 (2.00x predicted, 2.00x here)",
        "2.19x the time of onnx int8 (2.12x predicted, 2.25x here)",
    ]


def test_between_units_of_another_kind_only_the_prediction_is_told() -> None:
    rows = [built("tensorrt", "fp16", 4, 16), built("tensorrt", "int8", 9, 2)]
    assert choose(rows, ORIN)[1][0].why_not == "8.00x the time of tensorrt int8, predicted"


def test_int8_that_is_slower_here_than_its_float_twin_loses_to_it() -> None:
    winner, outcome = choose([built("onnx", "fp32", 4, 16), built("onnx", "int8", 5, 8)], PI)
    assert winner.candidate.precision == "fp32"
    assert "no faster than float: 5 ms against 4 ms here" in outcome[1].why_not


def test_int8_that_was_asked_for_is_shipped_even_where_it_is_slower() -> None:
    winner, outcome = choose([built("onnx", "fp32", 4, 16), built("onnx", "int8", 5, 8, asked=True)], PI)
    assert winner.candidate.precision == "int8"
    assert "not asked for" in outcome[0].why_not


def test_what_this_machine_measures_says_nothing_about_a_gpu() -> None:
    rows = [built("tensorrt", "fp32", 4, 16), built("tensorrt", "int8", 9, 2)]
    winner, _ = choose(rows, ORIN)
    assert winner.candidate.precision == "int8"


def test_refused_candidates_never_win() -> None:
    bad = replace(built("onnx", "int8", 1, 1), why_not="drop 9 points", error=QualityError("bad"))
    winner, outcome = choose([built("onnx", "fp32", 8, 16), bad], PI)
    assert winner.candidate.precision == "fp32"
    assert outcome[1].why_not == "drop 9 points"


def test_where_none_is_left_the_quality_error_is_raised_before_any_other() -> None:
    missing = replace(built("litert", "-", 1, 1), why_not="missing", error=MissingExtraError("a", "b", "c"))
    bad = replace(built("onnx", "int8", 1, 1), why_not="drop", error=QualityError("drop 9 points"))
    with pytest.raises(QualityError, match="9 points"):
        choose([missing, bad], PI)


def test_the_twin_is_the_fp32_of_the_same_format() -> None:
    rows = [built("onnx", "fp32", 8, 16), built("litert", "fp32", 9, 17), built("litert", "int8", 4, 8)]
    assert float_twin(rows[2], rows) is rows[1]
