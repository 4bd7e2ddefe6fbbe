"""The engine's answers are those of the part's own file in ONNX Runtime, in every precision, at every batch size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.errors import DeviceError, InputError, SessionError, UnknownNameError, UsageError
from edgekit.runtimes.load import load
from edgekit.runtimes.session import Session
from edgekit.runtimes.torch_engine import PRECISIONS, TorchOptions, open_torch, supply
from edgekit.runtimes.torch_engine.compiled import WEIGHTS
from edgekit.runtimes.torch_engine.session import EngineSession

Feeds = dict[str, np.ndarray]
Rows = Callable[[Feeds, int], Feeds]
Allowed = Callable[[Path, str], float]


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def open_engine(bundle: Bundle, part: Part, cache: Path, **options: object) -> EngineSession:
    session = open_torch(bundle, part, TorchOptions(threads=1, cache_dir=cache, **options))  # type: ignore[arg-type]
    assert isinstance(session, EngineSession)
    return session


def agree(session: EngineSession, reference: Session, feeds: Feeds, rows: Rows, bound: float) -> None:
    most = len(next(iter(feeds.values())))
    for size in range(1, most + 1):
        given = rows(feeds, size)
        found, wanted = session.run(given)["logits"], reference.run(given)["logits"]
        assert found.dtype == wanted.dtype and found.shape == wanted.shape == (size, 10)
        assert distance(found, wanted) <= bound


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_the_eager_form_agrees_with_onnx_runtime_at_every_batch_size(
    net: str,
    precision: str,
    images: np.ndarray,
    first_rows: Rows,
    packages: Path,
    allowed: Allowed,
    request: pytest.FixtureRequest,
) -> None:
    bundle: Bundle = request.getfixturevalue(net)
    part = bundle.manifest.part("whole")
    with (
        open_engine(bundle, part, packages, precision=precision, compile=False) as session,
        load(bundle, part="whole", threads=1) as reference,
    ):
        assert not session.is_compiled
        agree(session, reference, {"image": images}, first_rows, allowed(session.path, precision))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bf16", "fp16", "w4a16")]


@pytest.mark.parametrize("precision", ["fp32", "int8", *SLOW])
def test_a_compiled_tail_agrees_with_onnx_runtime_at_every_batch_size(
    precision: str, cnn: Bundle, tail: Part, features: Feeds, first_rows: Rows, packages: Path, allowed: Allowed
) -> None:
    with (
        open_engine(cnn, tail, packages, precision=precision) as session,
        load(cnn, part=tail.name, threads=1) as reference,
    ):
        assert session.is_compiled
        assert session.runs == f"torch {precision} on cpu, compiled, checked against its eager form"
        agree(session, reference, features, first_rows, allowed(session.path, precision))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "w4a16"])
def test_a_compiled_transformer_agrees_with_onnx_runtime_at_every_batch_size(
    precision: str, vit: Bundle, images: np.ndarray, first_rows: Rows, packages: Path, allowed: Allowed
) -> None:
    part = vit.manifest.part("whole")
    with (
        open_engine(vit, part, packages, precision=precision) as session,
        load(vit, part="whole", threads=1) as reference,
    ):
        assert session.is_compiled
        agree(session, reference, {"image": images}, first_rows, allowed(session.path, precision))


def test_a_second_start_compiles_nothing_and_answers_alike(
    cnn: Bundle, tail: Part, features: Feeds, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(cnn, tail, packages) as session:
        first = session.run(features)["logits"]

    def refuse(*arguments: object) -> None:
        pytest.fail("compiled again")

    monkeypatch.setattr(supply, "compile_graph", refuse)
    monkeypatch.setattr(supply, "load_program", refuse)
    with open_engine(cnn, tail, packages) as again:
        assert again.is_compiled
        np.testing.assert_array_equal(again.run(features)["logits"], first)


def test_several_starts_compile_once(
    cnn: Bundle, tail: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: Path
) -> None:
    with open_engine(cnn, tail, packages) as session:
        made = session._runner._path.parent  # type: ignore[attr-defined]
    calls: list[object] = []

    def from_store(program: object, graph: object, truth: object, target: object, folder: Path) -> None:
        """What inductor made of the same program before."""
        calls.append(target)
        (folder / "package.pt2").write_bytes((made / "package.pt2").read_bytes())

    monkeypatch.setattr(supply, "compile_graph", from_store)
    for _ in range(3):
        with open_engine(cnn, tail, tmp_path) as session:
            assert session.is_compiled
    assert len(calls) == 1


def test_a_damaged_package_is_made_anew(
    cnn: Bundle, tail: Part, features: Feeds, tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(cnn, tail, packages) as session:
        made = session._runner._path  # type: ignore[attr-defined]
        wanted = session.run(features)["logits"]
    good = made.read_bytes()
    calls: list[object] = []

    def from_store(program: object, graph: object, truth: object, target: object, folder: Path) -> None:
        calls.append(target)
        (folder / "package.pt2").write_bytes(good)

    monkeypatch.setattr(supply, "compile_graph", from_store)
    with open_engine(cnn, tail, tmp_path) as session:
        kept = session._runner._path  # type: ignore[attr-defined]
    kept.write_bytes(good[: len(good) // 2])
    with open_engine(cnn, tail, tmp_path) as session:
        np.testing.assert_array_equal(session.run(features)["logits"], wanted)
        assert session.is_compiled
    assert len(calls) == 2


def test_without_a_compiler_it_runs_eager_and_says_so(
    cnn: Bundle, tail: Part, features: Feeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "edgekit"), open_engine(cnn, tail, tmp_path) as session:
        assert not session.is_compiled
        assert session.run(features)["logits"].shape == (9, 10)
    assert "runs eager" in caplog.text and "no-such-compiler" in caplog.text


def test_a_cache_that_cannot_be_written_runs_eager_and_says_so(
    cnn: Bundle, tail: Part, features: Feeds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file, where a folder should be")
    with caplog.at_level(logging.WARNING, "edgekit"), open_engine(cnn, tail, tmp_path / "taken") as session:
        assert not session.is_compiled
        assert np.isfinite(session.run(features)["logits"]).all()
    assert "cannot be written" in caplog.text


def test_code_that_computes_something_else_is_never_used(
    cnn: Bundle, tail: Part, features: Feeds, tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The code of the same program in int8 stands for what a compiler got wrong: close, and too far for float32."""
    with open_engine(cnn, tail, packages, precision="int8") as other:
        wrong = other._runner._path.read_bytes()  # type: ignore[attr-defined]
    calls: list[object] = []

    def miscompile(program: object, graph: object, truth: object, target: object, folder: Path) -> None:
        calls.append(target)
        (folder / "package.pt2").write_bytes(wrong)

    monkeypatch.setattr(supply, "compile_graph", miscompile)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "edgekit"), open_engine(cnn, tail, tmp_path) as session:
            assert not session.is_compiled
        assert "failed its check" in caplog.text and "allowed" in caplog.text
        caplog.clear()
    assert len(calls) == 1, "what failed its check is known at the next start"
    assert not list(tmp_path.rglob(WEIGHTS))


@pytest.mark.parametrize("kind", ["raises", "writes what does not load"])
def test_a_compiler_that_fails_is_asked_again_at_the_next_start(
    kind: str, cnn: Bundle, tail: Part, features: Feeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    calls: list[object] = []

    def fail(program: object, graph: object, truth: object, target: object, folder: Path) -> None:
        calls.append(target)
        if kind == "raises":
            raise RuntimeError("no space left\nand many more lines")
        (folder / "package.pt2").write_bytes(b"not a package")

    monkeypatch.setattr(supply, "compile_graph", fail)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "edgekit"), open_engine(cnn, tail, tmp_path) as session:
            assert not session.is_compiled
            assert np.isfinite(session.run(features)["logits"]).all()
        assert "compiling failed" in caplog.text and "more lines" not in caplog.text
        caplog.clear()
    assert len(calls) == 2
    assert not list((tmp_path / "torch").iterdir())


def test_a_part_without_a_program_names_the_option_that_adds_it(cnn: Bundle, tail: Part) -> None:
    bare = replace_companions(tail)
    with pytest.raises(SessionError, match="brings no program") as caught:
        open_torch(cnn, bare, TorchOptions())
    assert "--engine torch" in caught.value.hint


def replace_companions(part: Part) -> Part:
    return part.model_copy(update={"companions": ()})


def test_a_gpu_that_is_not_there_is_a_device_error_with_the_way_out(cnn: Bundle, tail: Part, packages: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="cuda") as caught:
        open_engine(cnn, tail, packages, device="cuda")
    assert "--device cpu" in caught.value.hint


def test_wrong_feeds_are_input_errors_and_leave_the_session_usable(
    cnn: Bundle, tail: Part, features: Feeds, packages: Path
) -> None:
    name = next(iter(features))
    with open_engine(cnn, tail, packages, compile=False) as session:
        with pytest.raises(InputError):
            session.run({name: features[name].astype(np.float64)})
        with pytest.raises(InputError):
            session.run({name: features[name][:, :3]})
        assert np.isfinite(session.run(features)["logits"]).all()


def test_outputs_are_the_callers_to_keep(cnn: Bundle, tail: Part, features: Feeds, packages: Path) -> None:
    with open_engine(cnn, tail, packages, compile=False) as session:
        kept = session.run(features)["logits"]
        copy = kept.copy()
        session.run({name: value * 2 for name, value in features.items()})
        np.testing.assert_array_equal(kept, copy)
        kept += 1
        np.testing.assert_array_equal(session.run(features)["logits"], copy)


@pytest.mark.parametrize("name", ["cdua", "cuda:x", "cpu:1", ""])
def test_an_unknown_device_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        TorchOptions(device=name)
    assert "cpu" in caught.value.hint and "cuda" in caught.value.hint


def test_an_unknown_precision_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        TorchOptions(precision="bfp16")
    assert caught.value.nearest in ("bf16", "fp16")


@pytest.mark.parametrize("options", [{"buckets": ()}, {"buckets": (0, 1)}, {"memory_bytes": 0}, {"threads": 0}])
def test_numbers_that_cannot_be_are_usage_errors(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(TorchOptions(), **options)  # type: ignore[arg-type]
