"""Sessions of programs with several inputs, lengths and no open batch, which the trained nets do not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import InputError, SessionError
from edgekit.exporters.torch_program import write_torch_program
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.runtimes.torch_engine import TorchOptions
from edgekit.runtimes.torch_engine.session import EngineSession


class Words(nn.Module):
    """Ids and a mask of any number of texts of any length up to 16: a vector each, and how long it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(50, 8), nn.Embedding(16, 8)
        self.project = nn.Linear(8, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        values = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        kept = mask.unsqueeze(-1).float()
        return self.project((values * kept).sum(1) / kept.sum(1).clamp(min=1)), mask.sum(1)


OPEN = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}


def words(rows: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows * 100 + length)
    mask = np.ones((rows, length), np.int64)
    mask[:, length // 2 :] = 0
    return {"ids": generator.integers(0, 50, (rows, length)), "mask": mask}


def opened(folder: Path, dynamic: dict[str, dict[int, str]], **options: object) -> tuple[EngineSession, Model]:
    sample = {name: torch.from_numpy(value) for name, value in words(2, 6).items()}
    model = Capture()(Model("words", Words().eval(), sample, output_names=("vector", "count"), dynamic=dynamic))
    path = write_torch_program(model, folder)
    chosen = TorchOptions(**{"threads": 1, "cache_dir": folder, "compile": False, **options})  # type: ignore[arg-type]
    return EngineSession(path, model.input_specs, model.output_specs, chosen), model


COMPILED = pytest.param("int8", True, marks=pytest.mark.slow)


@pytest.mark.parametrize(("precision", "compiles"), [("fp32", False), ("bf16", False), ("int8", False), COMPILED])
def test_any_number_of_texts_of_any_length(precision: str, compiles: bool, tmp_path: Path) -> None:
    session, model = opened(tmp_path, OPEN, precision=precision, compile=compiles)
    assert session.is_compiled == compiles
    # eight operators on the way that each round, and an 8-bit step of each row and weight
    bound = {"fp32": 8 * 2.0**-23, "bf16": 8 * 2.0**-8, "int8": 2 / 127}[precision]
    with session:
        assert not session.is_batchable
        for rows, length in ((1, 2), (3, 16), (5, 7)):
            given = words(rows, length)
            found = session.run(given)
            wanted = model.forward({name: torch.from_numpy(value) for name, value in given.items()})
            np.testing.assert_array_equal(found["count"], wanted["count"].numpy())
            vector = wanted["vector"].numpy()
            assert found["vector"].dtype == np.float32
            assert np.abs(found["vector"] - vector).max() <= bound * np.abs(vector).max()


def test_a_text_beyond_the_models_length_and_an_id_beyond_its_table_are_session_errors(tmp_path: Path) -> None:
    session, _ = opened(tmp_path, OPEN)
    with session:
        with pytest.raises(SessionError, match=r"words\.torch\.pt2"):
            session.run(words(2, 17))
        bad = words(2, 6)
        bad["ids"][0, 0] = 50
        with pytest.raises(SessionError, match=r"words\.torch\.pt2"):
            session.run(bad)
        assert session.run(words(2, 6))["vector"].shape == (2, 4)


def test_inputs_of_different_numbers_of_rows_are_an_input_error(tmp_path: Path) -> None:
    session, _ = opened(tmp_path, {"ids": {0: "batch"}, "mask": {0: "batch"}})
    with session:
        assert session.is_batchable
        with pytest.raises(InputError, match="rows of the inputs") as caught:
            session.run({"ids": words(3, 6)["ids"], "mask": words(2, 6)["mask"]})
        assert "'ids': 3" in caught.value.message


def test_a_program_without_an_open_batch_takes_what_it_was_made_for(tmp_path: Path) -> None:
    session, model = opened(tmp_path, {})
    with session:
        found = session.run(words(2, 6))["vector"]
        wanted = model.forward({name: torch.from_numpy(value) for name, value in words(2, 6).items()})["vector"]
        np.testing.assert_allclose(found, wanted.numpy(), atol=8 * 2.0**-23)
        with pytest.raises(InputError):
            session.run(words(3, 6))


def test_a_constant_that_is_an_output_is_copied(tmp_path: Path) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("fixed", torch.arange(3.0))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + self.fixed, self.fixed

    model = Capture()(Model("constant", Constant(), {"x": torch.rand(2, 3)}, output_names=("y", "fixed")))
    path = write_torch_program(model, tmp_path)
    options = TorchOptions(threads=1, cache_dir=tmp_path, compile=False)
    with EngineSession(path, model.input_specs, model.output_specs, options) as session:
        given = {"x": np.zeros((2, 3), np.float32)}
        session.run(given)["fixed"][:] = 7
        assert session.run(given)["y"][0].tolist() == [0, 1, 2]
