from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle, Manifest, describe_file, write_bundle
from edgekit.bundle.manifest import Part, Postprocess, Preprocess, Provenance, TensorEntry, Variant
from edgekit.errors import BundleError, MissingExtraError, SessionError, UnknownNameError, UsageError
from edgekit.runtimes import load as loading
from edgekit.runtimes.load import load
from edgekit.runtimes.predict import Predictor

onnx = pytest.importorskip("onnx", reason="the artifacts of these tests are made with onnx")
pytest.importorskip("onnxruntime", reason="the artifacts of these tests run in ONNX Runtime")

WEIGHT = np.linspace(-1, 1, 3 * 4 * 4 * 2).reshape(48, 2).astype(np.float32)


def _artifact(scale: float) -> bytes:
    helper, proto = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["scores"])],
        "net",
        [helper.make_tensor_value_info("image", proto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("scores", proto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(WEIGHT * np.float32(scale), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _part(name: str, data: bytes, format: str) -> Part:
    return Part(
        **describe_file(f"{name}.onnx", data).model_dump(),
        name=name,
        format=format,
        precision="fp32",
        inputs=(TensorEntry(name="image", dtype="float32", shape=(1, 3, 4, 4)),),
        outputs=(TensorEntry(name="scores", dtype="float32", shape=(1, 2)),),
    )


@pytest.fixture
def bundle_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default part in `onnx`, a second one in `tensorrt` (the same runtime), and a variant of both."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    data = {"first": _artifact(1.0), "second": _artifact(2.0)}
    parts = (_part("first", data["first"], "onnx"), _part("second", data["second"], "tensorrt"))
    manifest = Manifest(
        name="net",
        task="classification",
        device="x86-server",
        parts=parts,
        variants=(
            Variant(name="plain", parts=("first",)),
            Variant(name="double", parts=("second",)),
            Variant(name="both", parts=("first", "second")),
        ),
        preprocess=Preprocess(resize=4, crop=4, mean=(127.0,) * 3, std=(128.0,) * 3),
        postprocess=Postprocess(kind="classification", output="scores", labels=("cat", "dog")),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="sample", source="net", source_sha256="", recipe={}
        ),
    )
    files = {f"parts/{name}.onnx": content for name, content in data.items()}
    return write_bundle(tmp_path / "net.edgekit", manifest, files, {}, "")


IMAGE = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)


def test_default_part_loads_from_a_path_and_from_a_bundle(bundle_path):
    with load(bundle_path, threads=1) as session:
        np.testing.assert_allclose(session.run({"image": IMAGE})["scores"], IMAGE.reshape(1, -1) @ WEIGHT, rtol=1e-5)
    with Bundle.open(bundle_path) as bundle, load(bundle) as session:
        assert session.format == "onnx"


def test_part_and_variant_choose(bundle_path):
    for choice in ({"part": "second"}, {"variant": "double"}, {"variant": "both", "part": "second"}):
        with load(bundle_path, **choice) as session:
            np.testing.assert_allclose(
                session.run({"image": IMAGE})["scores"], IMAGE.reshape(1, -1) @ WEIGHT * 2, rtol=1e-5
            )


def test_unknown_choices_and_variants_of_several_parts_are_refused(bundle_path):
    with pytest.raises(UnknownNameError, match="did you mean 'first'"):
        load(bundle_path, part="frist")
    with pytest.raises(UnknownNameError, match="variant"):
        load(bundle_path, variant="fast")
    with pytest.raises(UsageError, match="several parts"):
        load(bundle_path, variant="both")
    with pytest.raises(UsageError, match="does not take"):
        load(bundle_path, variant="plain", part="second")
    with pytest.raises(UsageError, match="threads 0"):
        load(bundle_path, threads=0)
    with pytest.raises(BundleError):
        load(bundle_path.parent / "missing.edgekit")


def _without(monkeypatch: pytest.MonkeyPatch, *formats: str) -> None:
    original = loading.open_session

    def open_session(format, *arguments):
        if format in formats:
            raise MissingExtraError("onnxruntime", "onnx", f"running a part in the format {format}")
        return original(format, *arguments)

    monkeypatch.setattr(loading, "open_session", open_session)


def test_another_part_runs_where_the_default_runtime_is_missing_and_the_log_says_so(bundle_path, monkeypatch, caplog):
    _without(monkeypatch, "onnx")
    with caplog.at_level(logging.WARNING, "edgekit"), load(bundle_path) as session:
        assert session.format == "tensorrt"
    assert "first" in caplog.text
    assert 'pip install "edgekit[onnx]"' in caplog.text


def test_part_asked_for_by_name_is_never_replaced(bundle_path, monkeypatch):
    _without(monkeypatch, "onnx")
    for choice in ({"part": "first"}, {"variant": "plain"}):
        with pytest.raises(MissingExtraError):
            load(bundle_path, **choice)


def test_no_runtime_at_all_names_the_extra_of_the_default(bundle_path, monkeypatch):
    _without(monkeypatch, "onnx", "tensorrt")
    with pytest.raises(MissingExtraError, match=r"format onnx"):
        load(bundle_path)


def test_closing_the_session_closes_the_bundle_that_load_opened(bundle_path, monkeypatch):
    closed = []
    original = Bundle.close
    monkeypatch.setattr(Bundle, "close", lambda self: (closed.append(self), original(self))[1])
    session = load(bundle_path)
    assert closed == []
    session.close()
    session.close()
    assert len(closed) == 1
    with pytest.raises(SessionError, match="closed"):
        session.run({"image": IMAGE})


def test_failing_warm_up_closes_what_was_opened(bundle_path, monkeypatch):
    closed = []
    original = Bundle.close
    monkeypatch.setattr(Bundle, "close", lambda self: (closed.append(self), original(self))[1])

    def fail(self):
        raise SessionError("the runtime failed")

    monkeypatch.setattr("edgekit.runtimes.session.Session.warm_up", fail)
    with pytest.raises(SessionError):
        load(bundle_path)
    assert len(closed) == 1


def test_predictor_answers_with_labels_and_times(bundle_path, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    with Bundle.open(bundle_path) as bundle, load(bundle, threads=1) as session:
        predictor = Predictor(bundle, session)
        prediction = predictor.predict(tmp_path / "photo.png")
        tensor = ((pixels.astype(np.float32) - 127) / 128).transpose(2, 0, 1).reshape(1, -1)
        scores = (tensor @ WEIGHT)[0].astype(np.float64)
        shares = np.exp(scores) / np.exp(scores).sum()
        wanted = sorted(zip(("cat", "dog"), shares, strict=True), key=lambda pair: -pair[1])
        assert [label for label, _ in prediction.top] == [label for label, _ in wanted]
        np.testing.assert_allclose([share for _, share in prediction.top], [share for _, share in wanted], rtol=1e-4)
        assert list(prediction.latency_ms) == ["preprocess", "inference", "postprocess"]
        assert all(value >= 0 for value in prediction.latency_ms.values())
        assert predictor.predict(pixels).top == prediction.top
        assert len(predictor.predict(pixels, count=1).top) == 1
