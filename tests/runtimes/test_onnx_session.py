from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.devices.device import load_device
from edgekit.errors import InputError, MissingExtraError, SessionError, UnknownNameError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.preparation import prepare
from edgekit.progress import silent
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.static import StaticInt8
from edgekit.runtimes.onnx_session import OnnxSession, TensorrtSession, settings_path
from edgekit.runtimes.session import SessionOptions, open_session
from edgekit.tensors import TensorSpec
from edgekit.zoo.fashion import fashion_vit

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
INPUTS = (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("mask", "bool", ("batch", 3)))
OUTPUTS = (TensorSpec("y", "float32", ("batch", 3)), TensorSpec("count", "int64", ()))


def _write(path: Path, *, half: bool = False) -> Path:
    """y = where(mask, x W, 0), count = elements of y; declared in the other order than the specs."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weight = WEIGHT.astype(np.float16 if half else np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Where", ["mask", "product", "zero"], ["y"]),
            helper.make_node("Size", ["y"], ["count"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", 3]),
            helper.make_tensor_value_info("x", kind, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("y", kind, ["batch", 3]),
        ],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros((), weight.dtype), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return _write(tmp_path / "model.onnx")


def _feeds(batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch)
    return {
        "mask": generator.random((batch, 3)) > 0.3,
        "x": generator.standard_normal((batch, 4)).astype(np.float32),
    }


@pytest.mark.parametrize("kind", [OnnxSession, TensorrtSession])
@pytest.mark.parametrize("batch", [1, 5])
def test_outputs_come_in_the_order_of_the_specs_with_their_dtypes(
    path: Path, kind: type[OnnxSession], batch: int
) -> None:
    feeds = _feeds(batch)
    with kind(path, INPUTS, OUTPUTS) as session:
        result = session.run(feeds)
    assert list(result) == ["y", "count"]
    assert (result["y"].dtype, result["count"].dtype) == (np.float32, np.int64)
    # One float32 dot product of length 4: 4 roundings of half an ulp of a sum below 8.
    np.testing.assert_allclose(result["y"], np.where(feeds["mask"], feeds["x"] @ WEIGHT, 0), atol=4 * 2**-21)
    assert int(result["count"]) == 3 * batch


def test_an_input_that_is_not_contiguous_gives_the_same_as_a_contiguous_one(path: Path) -> None:
    feeds = _feeds(4)
    with OnnxSession(path, INPUTS, OUTPUTS) as session:
        want = session.run(feeds)["y"]
        got = session.run({"mask": feeds["mask"], "x": np.asfortranarray(feeds["x"])})["y"]
    np.testing.assert_array_equal(got, want)


def test_outputs_are_the_callers_to_keep(path: Path) -> None:
    with OnnxSession(path, INPUTS, OUTPUTS) as session:
        first = session.run(_feeds(2))["y"]
        kept = first.copy()
        session.run({name: np.zeros_like(value) for name, value in _feeds(2).items()})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_result(path: Path, threads: int) -> None:
    with OnnxSession(path, INPUTS, OUTPUTS, SessionOptions(threads=threads)) as session:
        got = session.run(_feeds(3))["y"]
    with OnnxSession(path, INPUTS, OUTPUTS) as session:
        np.testing.assert_array_equal(got, session.run(_feeds(3))["y"])


def test_half_inside_and_float_outside_is_cast_at_the_border(tmp_path: Path) -> None:
    feeds = _feeds(3)
    with OnnxSession(_write(tmp_path / "half.onnx", half=True), INPUTS, OUTPUTS) as session:
        result = session.run(feeds)
        session.bare(feeds)()
    assert result["y"].dtype == np.float32
    # Inputs, weights, four sums in half precision: ulp of values below 8 is 2^-8.
    np.testing.assert_allclose(result["y"], np.where(feeds["mask"], feeds["x"] @ WEIGHT, 0), atol=4 * 2**-8)


def test_bare_runs_the_runtime_on_the_same_feeds(path: Path) -> None:
    feeds = _feeds(2)
    with OnnxSession(path, INPUTS, OUTPUTS) as session:
        fetched = session.bare(feeds)()
        assert isinstance(fetched, list)
        np.testing.assert_array_equal(fetched[0], session.run(feeds)["y"])


def test_a_closed_session_refuses_and_closes_twice(path: Path) -> None:
    session = OnnxSession(path, INPUTS, OUTPUTS)
    session.warm_up()
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.run(_feeds(1))


def test_the_same_file_can_be_loaded_again(path: Path) -> None:
    results = []
    for _ in range(2):
        with open_session("onnx", path, INPUTS, OUTPUTS) as session:
            results.append(session.run(_feeds(1))["y"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 4), np.float64)}, "dtype float64, allowed float32"),
        ({"x": np.zeros((2, 5), np.float32)}, r"shape \[2, 5\], allowed \['batch', 4\]"),
        ({"extra": np.zeros(1)}, "input names"),
        ({"x": [1.0]}, "is a list"),
    ],
)
def test_inputs_that_do_not_fit_are_named(path: Path, change: dict[str, object], message: str) -> None:
    with OnnxSession(path, INPUTS, OUTPUTS) as session, pytest.raises(InputError, match=message):
        session.run({**_feeds(2), **change})  # type: ignore[dict-item]


def test_sizes_that_disagree_fail_with_the_runtimes_message(path: Path) -> None:
    feeds = {"x": _feeds(3)["x"], "mask": _feeds(2)["mask"]}
    with OnnxSession(path, INPUTS, OUTPUTS) as session, pytest.raises(SessionError, match="ONNX Runtime failed"):
        session.run(feeds)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_file_that_is_no_model_is_refused(path: Path, content: bytes | None) -> None:
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(SessionError, match=r"refuses model\.onnx|has the inputs"):
        OnnxSession(path, INPUTS, OUTPUTS)


def test_integer_weights_stay_integers_where_all_sizes_are_fixed(tmp_path: Path) -> None:
    """MatMul and Add fused to Gemm, which ONNX Runtime does first, runs in float."""
    fixed = fashion_vit().evolve_quietly(dynamic={})
    model = StaticInt8(ONNX_X86, learned_rounding=False)(prepare(fixed, silent)[0])
    artifact = OnnxExporter().export(model, tmp_path, load_device("x86-server"))
    with artifact.open(model, SessionOptions(threads=1)) as session:
        assert isinstance(session, OnnxSession)
        disabled = session.slow_fusions()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(artifact.path), settings, ["CPUExecutionProvider"], disabled_optimizers=disabled)
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["Gemm"] == 0
    assert found["MatMulIntegerToFloat"] >= 24


def test_float_files_keep_the_fusion(path: Path) -> None:
    with OnnxSession(path, INPUTS, OUTPUTS) as session:
        assert "MatMulAddFusion" not in session.slow_fusions()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no artifact"):
        OnnxSession(tmp_path / "none.onnx", INPUTS, OUTPUTS)


@pytest.mark.parametrize(
    "inputs",
    [(TensorSpec("z", "float32", (1, 4)), INPUTS[1]), (TensorSpec("x", "int64", ("batch", 4)), INPUTS[1]), INPUTS[:1]],
)
def test_a_file_that_is_not_the_manifests_is_refused(path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(SessionError, match="manifest"):
        OnnxSession(path, inputs, OUTPUTS)


def test_an_unknown_provider_names_the_nearest(path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        OnnxSession(path, INPUTS, OUTPUTS, SessionOptions(provider="cudda"))


def test_a_provider_that_this_build_lacks_says_what_it_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SessionError, match="has no provider 'cuda'; it has: CPUExecutionProvider"):
        OnnxSession(path, INPUTS, OUTPUTS, SessionOptions(provider="cuda"))


def test_without_onnxruntime_the_pip_command_is_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        OnnxSession(path, INPUTS, OUTPUTS)
    assert caught.value.hint == 'pip install "edgekit[onnx]"'


class _Chain(TensorrtSession):
    """Builds the provider chain as on a machine with TensorRT, without loading anything."""

    def _load(self) -> None:
        self.provider = self._choose_provider(["TensorrtExecutionProvider", "CUDAExecutionProvider"])
        self.chain = self._providers()


def test_tensorrt_settings_come_from_the_companion_with_caches_below_the_cache_folder(path: Path) -> None:
    options = {"trt_fp16_enable": "True", "trt_engine_cache_path": "engines"}
    settings_path(path).write_text(json.dumps({"provider_options": options}))
    cache = path.parent / "cache"
    session = _Chain(path, INPUTS, OUTPUTS, SessionOptions(cache_dir=cache))
    settings = {"trt_fp16_enable": "True", "trt_engine_cache_path": str(cache / "engines")}
    assert session.chain == [
        ("TensorrtExecutionProvider", settings),
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert (cache / "engines").is_dir()


def test_tensorrt_settings_that_cannot_be_read_are_an_error(path: Path) -> None:
    settings_path(path).write_text("[]")
    with pytest.raises(SessionError, match="does not hold TensorRT provider settings"):
        _Chain(path, INPUTS, OUTPUTS)
