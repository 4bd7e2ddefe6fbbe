"""What is torch's own; test_session_contract.py has what every session promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import SessionError
from edgekit.runtimes.session import SessionOptions
from edgekit.runtimes.torch_session import TorchSession, as_tensors
from edgekit.tensors import TensorSpec


class PassThrough(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x[1:]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "pass.pt2"
    exported = torch.export.export(PassThrough(), (torch.rand(3),))
    exported.example_inputs = None
    torch.export.save(exported, path)
    return path


def test_example_inputs_which_torch_unpickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pass.pt2"
    torch.export.save(torch.export.export(PassThrough(), (torch.rand(3),)), path)
    with pytest.raises(SessionError, match="pickle"):
        open_program(path)


def open_program(path: Path, threads: int | None = None) -> TorchSession:
    outputs = [TensorSpec("same", "float32", (3,)), TensorSpec("rest", "float32", (2,))]
    return TorchSession(path, [TensorSpec("x", "float32", (3,))], outputs, SessionOptions(threads=threads))


def test_outputs_that_are_the_input_are_copied(program: Path) -> None:
    given = np.ones(3, np.float32)
    outputs = open_program(program).run({"x": given})
    given[:] = 7
    assert outputs["same"].tolist() == [1, 1, 1]
    assert outputs["rest"].tolist() == [1, 1]


def test_the_processs_own_number_of_threads_is_put_back(program: Path) -> None:
    before = torch.get_num_threads()
    open_program(program, threads=before + 1).run({"x": np.ones(3, np.float32)})
    assert torch.get_num_threads() == before


def test_contiguous_writable_arrays_are_not_copied() -> None:
    array = np.ones((2, 3), np.float32)
    frozen = np.ones(2, np.float32)
    frozen.flags.writeable = False
    shared, copied, transposed = as_tensors(torch, [array, frozen, array.T])
    assert shared.data_ptr() == array.ctypes.data
    assert copied.data_ptr() != frozen.ctypes.data
    assert transposed.is_contiguous()
