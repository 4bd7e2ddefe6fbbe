"""On a GPU, where torch sees one: every kernel beside its reference, and the benchmark, whose figures are printed.

In processes of their own: in this one Triton interprets.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from edgekit.registry import KERNELS
from tests.runtimes.cubins.conftest import edgekit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.mark.parametrize("name", list(KERNELS))
def test_the_kernel_equals_its_reference_on_the_gpu(name: str) -> None:
    told = json.loads(edgekit("kernels", "check", name, "--json").stdout)
    assert told["where"] == "GPU"
    assert told["kernels"] == [{"kernel": name, "examples": told["kernels"][0]["examples"], "wrong": []}]


@pytest.mark.slow
def test_the_benchmark_times_every_kernel_and_prints_what_it_reached(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = json.loads(edgekit("kernels", "benchmark", "--json").stdout)
    assert {one["kernel"] for one in told["kernels"]} == set(KERNELS)
    assert all(one["kernel_ms"] >= one["best_ms"] > 0 and one["bound_ms"] > 0 for one in told["kernels"])
    lines = [f"{told['device']}: {told['gbps']:.0f} GB/s, {told['bf16_tflops']:.0f} TFLOP/s in bf16"]
    for one in told["kernels"]:
        lines.append(f"  {one['kernel']}: {one['kernel_ms']:.3f} ms, {one['of_bound']:.2f} of {one['limited_by']}")
    lines += [f"  {goal['what']}: {goal['reached']:.2f}, wanted {goal['wanted']:.2f}" for goal in told["goals"]]
    with capsys.disabled():
        sys.stderr.write("\n" + "\n".join(lines) + "\n")
