"""The engine on a GPU, wherever there is one: the processor's answers, graphs replayed, weights evicted.

The same scene on the processor shows that the scene itself holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.runtimes.torch_engine import PRECISIONS
from edgekit.runtimes.torch_engine.session import program_of

SCENE = Path(__file__).with_name("scene.py")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
CASES = [
    pytest.param("cpu", "fp32"),
    *[pytest.param("cuda", precision, marks=GPU) for precision in PRECISIONS],
]


@pytest.mark.parametrize(("device", "precision"), CASES)
def test_a_device_gives_the_processors_answers_at_every_batch_size(
    device: str, precision: str, cnn: Bundle, tail: Part, features: dict[str, np.ndarray], packages: Path,
    allowed: Callable[[Path, str], float], tmp_path: Path,
) -> None:  # fmt: skip
    np.save(tmp_path / "features.npy", next(iter(features.values())))
    # Kernels are interpreted in this process; on a GPU they are compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [str(cnn.path), tail.name, device, precision, str(packages), str(tmp_path / "features.npy")]
    done = subprocess.run(
        [sys.executable, str(SCENE), *command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    program = cnn.part_path(tail.name).parent / program_of(cnn, tail).file
    assert found["compiled"] and found["lane"] == (device == "cuda")
    # both sides lie within the bound of the float answers
    assert found["distance"] <= 2 * allowed(program, precision)
    assert found["repeats"] and found["evicted"]
    assert min(found["uploads"]) >= 2
