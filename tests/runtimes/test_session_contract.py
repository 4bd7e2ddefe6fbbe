"""One contract over every runtime: what a Session promises, whatever runs below it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import load_device
from edgekit.errors import InputError, SessionError
from edgekit.exporters.base import Artifact
from edgekit.exporters.torch_program import write_torch_program
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.registry import EXPORTERS
from edgekit.runtimes.session import Session, SessionOptions, open_session

FORMATS = ("onnx", "litert", "executorch", "inductor", "torch")

# float32 sums of 4 products in another order: a few ulp of values near 1
TOLERANCE = 16 * np.finfo(np.float32).eps


class TwoInputs(nn.Module):
    """Inputs of two dtypes and outputs of two dtypes: what is mixed up shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(4, 3)
        self.table = nn.Embedding(8, 3)

    def forward(self, features: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.project(features) + self.table(ids)), ids * 2 + 1


@pytest.fixture(scope="module")
def model() -> Model:
    inputs = {"features": torch.rand(2, 4), "ids": torch.tensor([3, 5])}
    return Capture()(Model("two-inputs", TwoInputs().eval(), inputs, output_names=("scores", "codes")))


@pytest.fixture(scope="module", params=FORMATS)
def artifact(request: pytest.FixtureRequest, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "torch":
        return Artifact("torch", "fp32", write_torch_program(model, folder))
    return EXPORTERS.load(request.param)().export(model, folder, load_device("x86-server"))


@pytest.fixture
def session(artifact: Artifact, model: Model) -> Session:
    return artifact.open(model, SessionOptions(threads=1))


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"features": generator.random((2, 4), np.float32), "ids": generator.integers(0, 8, 2)}


def expected(model: Model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    outputs = model.forward({name: torch.from_numpy(value.copy()) for name, value in given.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def test_outputs_carry_the_models_names_dtypes_and_numbers(session: Session, model: Model) -> None:
    outputs = session.run(feeds())
    wanted = expected(model, feeds())
    assert list(outputs) == ["scores", "codes"]
    assert {name: value.dtype for name, value in outputs.items()} == {
        "scores": np.dtype("float32"),
        "codes": np.dtype("int64"),
    }
    np.testing.assert_allclose(outputs["scores"], wanted["scores"], atol=TOLERANCE)
    np.testing.assert_array_equal(outputs["codes"], wanted["codes"])


def test_opening_and_running_says_nothing_on_the_terminal(
    artifact: Artifact, model: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    with artifact.open(model, SessionOptions(threads=1)) as session:
        session.run(feeds())
    assert capfd.readouterr() == ("", "")


def test_the_order_of_the_mapping_does_not_matter(session: Session) -> None:
    forward, backward = feeds(), dict(reversed(feeds().items()))
    np.testing.assert_array_equal(session.run(forward)["scores"], session.run(backward)["scores"])


def test_outputs_are_the_callers_to_keep(session: Session) -> None:
    kept = session.run(feeds(0))
    copies = {name: value.copy() for name, value in kept.items()}
    session.run(feeds(1))
    for name, value in kept.items():
        np.testing.assert_array_equal(value, copies[name])
        value += 1  # writable, and the next run does not see it
    np.testing.assert_array_equal(session.run(feeds(0))["codes"], copies["codes"])


def test_inputs_are_left_as_they_were(session: Session) -> None:
    given = feeds()
    session.run(given)
    for name, value in feeds().items():
        np.testing.assert_array_equal(given[name], value)


@pytest.mark.parametrize("layout", ["read-only", "fortran", "strided"])
def test_an_input_may_lie_in_memory_in_any_way(session: Session, layout: str) -> None:
    given = feeds()
    plain = session.run(given)["scores"]
    if layout == "read-only":
        given["features"].flags.writeable = False
    elif layout == "fortran":
        given["features"] = np.asfortranarray(given["features"])
    else:
        given["features"] = np.repeat(given["features"], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(session.run(given)["scores"], plain)


def test_a_missing_name_is_an_input_error_that_lists_the_allowed_ones(session: Session) -> None:
    with pytest.raises(InputError, match=r"features.*ids"):
        session.run({"features": feeds()["features"]})


def test_an_unknown_name_is_an_input_error(session: Session) -> None:
    with pytest.raises(InputError, match="extra"):
        session.run({**feeds(), "extra": np.zeros(1)})


def test_a_wrong_dtype_is_an_input_error_that_says_both(session: Session) -> None:
    with pytest.raises(InputError, match="float64, allowed float32") as caught:
        session.run({**feeds(), "features": feeds()["features"].astype(np.float64)})
    assert caught.value.hint == "convert it: .astype('float32')"


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (2, 4, 1), (8,), ()])
def test_a_wrong_shape_is_an_input_error_that_says_both(session: Session, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"allowed \[2, 4\]"):
        session.run({**feeds(), "features": np.zeros(shape, np.float32)})


def test_what_is_not_an_array_is_an_input_error(session: Session) -> None:
    with pytest.raises(InputError, match="list"):
        session.run({**feeds(), "features": [[0.0] * 4] * 2})  # type: ignore[dict-item]


def test_a_bad_input_leaves_the_session_usable(session: Session, model: Model) -> None:
    with pytest.raises(InputError):
        session.run({})
    np.testing.assert_array_equal(session.run(feeds())["codes"], expected(model, feeds())["codes"])


def test_close_is_idempotent_and_ends_running(session: Session) -> None:
    session.run(feeds())
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.run(feeds())


def test_the_context_manager_closes(session: Session) -> None:
    with session as opened:
        opened.run(feeds())
    with pytest.raises(SessionError, match="closed"):
        session.run(feeds())


def test_outputs_outlive_the_session(session: Session) -> None:
    outputs = session.run(feeds())
    copies = {name: value.copy() for name, value in outputs.items()}
    session.close()
    for name, value in outputs.items():
        np.testing.assert_array_equal(value, copies[name])


@pytest.mark.parametrize("threads", [1, 2, None])
def test_any_number_of_threads_gives_the_same_numbers(artifact: Artifact, model: Model, threads: int | None) -> None:
    with artifact.open(model, SessionOptions(threads=threads)) as opened:
        np.testing.assert_allclose(opened.run(feeds())["scores"], expected(model, feeds())["scores"], atol=TOLERANCE)


def test_loading_again_gives_the_same_numbers(artifact: Artifact, session: Session, model: Model) -> None:
    first = session.run(feeds())
    with artifact.open(model, SessionOptions(threads=1)) as again:
        for name, value in again.run(feeds()).items():
            np.testing.assert_array_equal(value, first[name])


def test_two_sessions_of_one_file_do_not_disturb_each_other(artifact: Artifact, session: Session, model: Model) -> None:
    first = session.run(feeds(0))["scores"]
    with artifact.open(model, SessionOptions(threads=2)) as other:
        other.run(feeds(1))
        np.testing.assert_array_equal(session.run(feeds(0))["scores"], first)
    np.testing.assert_array_equal(session.run(feeds(0))["scores"], first)


def test_warm_up_runs_as_often_as_asked(artifact: Artifact, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with artifact.open(model, SessionOptions(threads=1, warmup=3)) as opened:
        runs: list[object] = []
        run: Callable = opened.run
        monkeypatch.setattr(opened, "run", lambda given: runs.append(given) or run(given))
        opened.warm_up()
        assert len(runs) == 3


def test_the_bare_call_repeats_without_us(session: Session, model: Model) -> None:
    call = session.bare(feeds())
    call()
    call()
    np.testing.assert_array_equal(session.run(feeds(1))["codes"], expected(model, feeds(1))["codes"])


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_damaged_file_is_a_session_error_that_names_it(
    artifact: Artifact, model: Model, tmp_path: Path, damage: str
) -> None:
    content = artifact.path.read_bytes()
    path = tmp_path / artifact.path.name
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 3], "text": b"not a model\n" * 99}[damage])
    with pytest.raises(SessionError, match=path.name):
        open_session(artifact.format, path, model.input_specs, model.output_specs)


def test_no_file_is_a_session_error(artifact: Artifact, model: Model, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no artifact"):
        open_session(artifact.format, tmp_path / "absent", model.input_specs, model.output_specs)


def test_specs_of_another_model_are_a_session_error(artifact: Artifact, model: Model) -> None:
    if artifact.format in ("inductor", "torch"):
        pytest.skip("the file does not say how many tensors it takes before it runs")
    third = dataclasses.replace(model.output_specs[0], name="third")
    with pytest.raises(SessionError):
        open_session(artifact.format, artifact.path, model.input_specs, (*model.output_specs, third))
