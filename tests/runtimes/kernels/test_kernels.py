"""Every kernel: equal to its reference in the interpreter, compiled without spills, never silently another result."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgekit.registry import KERNELS
from edgekit.runtimes.kernels.base import Kernel, _trusted, call, check, difference

# Entries that may spill, and why.
SPILLS: dict[str, str] = {}


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found: Kernel = KERNELS.load(request.param)
    return found


def test_the_kernel_equals_its_reference_on_every_example(kernel: Kernel) -> None:
    assert check(kernel) == []


def test_its_examples_are_odd_empty_and_more_than_a_tile(kernel: Kernel) -> None:
    names = [example.name for example in kernel.examples()]
    assert len(names) == len(set(names)) >= 4
    assert any(name.startswith("no ") or "empty" in name for name in names)
    assert all(example.tolerance <= 1e-2 and example.why for example in kernel.examples())


def test_its_costs_count_every_operand_and_result_once(kernel: Kernel) -> None:
    for example in kernel.examples():
        cost = kernel.cost(*example.arguments)
        operands = sum(a.nbytes for a in example.arguments if isinstance(a, Tensor))
        assert cost.flops >= 0 and cost.passes >= 1
        assert cost.bytes_moved >= 0.5 * operands


def test_a_kernel_that_differs_is_told_with_its_example(kernel: Kernel) -> None:
    def wrong(*arguments: object) -> object:
        answer = kernel.reference(*arguments)
        first = answer[0] if isinstance(answer, tuple) else answer
        changed = first + 1
        return (changed, *answer[1:]) if isinstance(answer, tuple) else changed

    found = check(replace(kernel, launch=wrong))  # type: ignore[arg-type]
    assert found and found[0].kernel == kernel.name and found[0].error > found[0].allowed


def test_off_the_gpu_the_reference_answers(kernel: Kernel) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("launched on the processor")

    example = kernel.examples()[0]
    answer = call(replace(kernel, launch=forbidden), *example.arguments)
    assert difference(answer, kernel.reference(*example.arguments)) == 0


def test_a_kernel_that_fails_its_check_is_replaced_loudly(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which it passes")
    with caplog.at_level(logging.ERROR):
        assert not _trusted(replace(kernel, name=f"{kernel.name}-broken"), torch.device("cuda"))
    assert "its reference is" in caplog.text


@pytest.mark.parametrize(
    ("got", "wanted", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([1.0], [1.0, 2.0], float("inf")),
        ([float("nan"), 2.0], [1.0, 2.0], float("inf")),
        ([float("inf"), 2.0], [float("inf"), 2.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_differences_are_relative_to_the_largest_value(got: list[float], wanted: list[float], expected: float) -> None:
    assert difference(torch.tensor(got), torch.tensor(wanted)) == pytest.approx(expected, abs=1e-6)


def test_integers_and_types_have_to_be_equal() -> None:
    assert difference(torch.tensor([1]), torch.tensor([2])) == float("inf")
    assert difference(torch.tensor([1]), torch.tensor([1.0])) == float("inf")


def command(*arguments: str, code: int = 0, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton's mode is chosen once in each."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "kernels", *arguments],
        capture_output=True, text=True, env=environment, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_87", "sm_90", "sm_100"])
def test_all_compile_for_four_architectures_without_spills(arch: str) -> None:
    binaries = json.loads(command("compile", "--arch", arch, "--json").stdout)["binaries"]
    assert {one["kernel"] for one in binaries} == set(KERNELS)
    for one in binaries:
        assert one["arch"] == arch and one["fits"] and one["code_bytes"] > 1000, one
        assert one["spilled_bytes"] == 0 or one["entry"] in SPILLS, one


def test_what_cannot_be_compiled_or_timed_is_told() -> None:
    assert "no architecture 'sm_12'" in command("compile", "kmeans-update", "--arch", "sm_12", code=2).stderr
    for arch in ("sm_87,", "sm_87,nonsense"):
        said = command("compile", "--arch", arch, code=2).stderr
        assert f"no architecture {arch.partition(',')[2]!r}" in said and "compile " not in said
    assert "are not compiled" in command("compile", code=2, interpret=True).stderr
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in command("benchmark", code=5).stderr


def test_machine_code_is_written_and_nothing_is_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "cubins"
    command("compile", "kmeans-update", "--arch", "sm_87", "-o", str(folder))
    (path,) = folder.iterdir()
    assert path.name.endswith(".sm_87.cubin") and path.stat().st_size > 1000
    assert "not an empty folder" in command("compile", "kmeans-update", "-o", str(folder), code=10).stderr
