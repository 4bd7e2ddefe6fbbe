"""The companion that a server's torch engine compiles: portable, deterministic, free of pickles."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle.screening import refuse_pickle
from edgekit.errors import ExportError
from edgekit.exporters.torch_program import write_torch_program
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantization import Quantization
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.runtimes.torch_engine.program import load_program


@pytest.fixture(scope="module")
def model(transformer: Model) -> Model:
    """With an open batch."""
    open_batch = replace(transformer, module=transformer.module, dynamic={"image": {0: "batch"}})
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten(), torch.nn.Linear(512, 10)).eval()
    return Capture()(replace(open_batch, module=module))


def test_the_program_answers_like_the_model_at_every_batch_size(model: Model, tmp_path: Path) -> None:
    program = load_program(write_torch_program(model, tmp_path))
    for size in (1, 2, 5):
        image = torch.randn(size, 3, 32, 32)
        with torch.no_grad():
            (logits,) = program.module(check_guards=False)(image)
        assert torch.equal(logits, model.forward({"image": image})["logits"])


def test_the_same_model_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    first, second = (write_torch_program(model, folder).read_bytes() for folder in folders)
    assert first == second


def test_nothing_in_it_is_pickled_or_names_a_file_of_this_machine(model: Model, tmp_path: Path) -> None:
    path = write_torch_program(model, tmp_path)
    with path.open("rb") as content:
        refuse_pickle(path.name, content)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        texts = [archive.read(name) for name in archive.namelist() if name.endswith(".json")]
    assert texts
    assert not any(str(Path(torch.__file__).parent).encode() in text or b".py" in text for text in texts)


def test_the_model_is_left_as_it_was(model: Model, tmp_path: Path) -> None:
    before = model.forward(model.example_inputs)["logits"].numpy()
    write_torch_program(model, tmp_path)
    np.testing.assert_array_equal(model.forward(model.example_inputs)["logits"].numpy(), before)


@pytest.mark.parametrize("kind", ["onnx", "quantized"])
def test_what_has_no_float_graph_is_refused(model: Model, tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        given = replace(model, onnx_path=tmp_path / "net.onnx")
    else:
        given = replace(model, quantization=Quantization("int8", ONNX_X86))
    with pytest.raises(ExportError, match="float torch graphs") as caught:
        write_torch_program(given, tmp_path)
    assert "--engine torch" in caught.value.hint
    assert not list(tmp_path.iterdir())
