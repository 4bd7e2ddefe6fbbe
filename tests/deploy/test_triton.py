"""The repository as Triton would read it (its own schema), and its models as ONNX Runtime runs them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from edgekit.bundle import Bundle
from edgekit.deploy import TritonOptions, write_repository
from edgekit.deploy.triton_config import Symbol
from edgekit.deploy.triton_config import text_format as own_text_format
from edgekit.errors import DeviceError, NodeError, OutputError
from edgekit.runtimes.load import load
from edgekit.runtimes.server import BatchOptions

ROW = ("batch", 4)


def read(path: Path) -> Any:
    """Raises ParseError for a field or a value that Triton's schema lacks."""
    return text_format.Parse((path / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def written(bundle: Path, output: Path, **options: Any) -> Any:
    with Bundle.open(bundle) as opened:
        return write_repository(opened, output, TritonOptions(**options))


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def test_a_model_is_what_the_manifest_says(tail_bundle: Path, tmp_path: Path) -> None:
    batch = BatchOptions(max_batch=8, max_delay_ms=1.5, queue=20)
    found = written(tail_bundle, tmp_path / "repository", batch=batch, instances=3, on_gpu=True, threads=2)
    assert (found.models, found.ensembles, found.notes) == (("Net.9.tail",), (), ())
    config = read(tmp_path / "repository" / "Net.9.tail")
    assert (config.name, config.platform, config.max_batch_size) == ("Net.9.tail", "onnxruntime_onnx", 8)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("x", 11, [4])]  # 11: TYPE_FP32
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("y", 11, [4])]
    assert [(group.count, group.kind) for group in config.instance_group] == [(3, ModelInstanceGroup.KIND_GPU)]
    assert config.version_policy.latest.num_versions == 1
    policy = config.dynamic_batching.default_queue_policy
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500
    assert (policy.max_queue_size, policy.timeout_action) == (20, ModelQueuePolicy.REJECT)
    with Bundle.open(tail_bundle) as bundle:
        told = parameters(config)
        assert told["edgekit_bundle"] == bundle.digest
        assert told["edgekit_model"] == bundle.manifest.part("tail").sha256
        assert told["edgekit_plan.all"] == bundle.manifest.plan_digest("all")
        assert told["intra_op_thread_count"] == "2"


def test_the_emitted_graph_answers_as_our_session_does(split_bundle: Path, tmp_path: Path) -> None:
    written(split_bundle, tmp_path / "repository")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with Bundle.open(split_bundle) as bundle:
        for part in ("middle", "tail"):
            file = tmp_path / "repository" / f"Net.9.{part}" / "1" / "model.onnx"
            theirs = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            with load(bundle, part=part, threads=1) as ours:
                expected = ours.run({ours.inputs[0].name: x})
            for name, array in expected.items():
                np.testing.assert_array_equal(theirs.run([name], {theirs.get_inputs()[0].name: x})[0], array)


def test_a_plan_through_two_parts_is_an_ensemble(split_bundle: Path, tmp_path: Path) -> None:
    found = written(split_bundle, tmp_path / "repository")
    assert (found.models, found.ensembles, found.notes) == (("Net.9.middle", "Net.9.tail"), ("Net.9.all",), ())
    config = read(tmp_path / "repository" / "Net.9.all")
    assert (config.platform, config.max_batch_size) == ("ensemble", 16)
    first, second = config.ensemble_scheduling.step
    assert [first.model_name, second.model_name] == ["Net.9.middle", "Net.9.tail"]
    assert dict(first.input_map) == {"a": "a"}
    assert list(first.output_map.values()) == list(second.input_map.values())
    assert dict(second.output_map) == {"y": "y"}
    assert {t.name for t in config.input} == {"a"} and {t.name for t in config.output} == {"y"}
    assert (tmp_path / "repository" / "Net.9.all" / "1").is_dir()


def test_an_ensemble_connects_by_name_where_the_order_differs(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    a, b = ("a", "float32", ROW), ("b", "int64", ROW)
    outer = (("p", "float32", ROW), ("q", "int64", ROW)), (("u", "int64", ROW), ("v", "float32", ROW))
    bundle = make_bundle({"one": ("edge", outer[0], (a, b)), "two": ("cloud", (b, a), outer[1])})
    assert written(bundle, tmp_path / "repository").ensembles == ("Net.9.all",)
    first, second = read(tmp_path / "repository" / "Net.9.all").ensemble_scheduling.step
    between = dict(first.output_map)
    assert dict(second.input_map) == {"a": between["a"], "b": between["b"]}


@pytest.mark.parametrize(
    ("given", "wanted", "why"),
    [
        ((("a", "float32", ROW),), (("a", "int64", ROW),), "gives a as float32"),
        ((("a", "float32", ("batch", 5)),), (("a", "float32", ROW),), r"\['batch', 5\]"),
        ((("a", "float32", ROW), ("b", "float32", ROW)), (("a", "float32", ROW),), "gives 2 tensors"),
        ((("a", "float32", (1, 4)),), (("a", "float32", ROW),), "only one takes batches"),
    ],
)
def test_tensors_that_do_not_fit_make_no_ensemble_and_it_says_why(
    make_bundle: Callable[..., Path], tmp_path: Path, given: Any, wanted: Any, why: str
) -> None:
    def named(tensors: Any, prefix: str) -> Any:
        return tuple((f"{prefix}{name}", dtype, shape) for name, dtype, shape in tensors)

    bundle = make_bundle({"one": ("edge", named(given, "in-"), given), "two": ("cloud", wanted, named(wanted, "out-"))})
    found = written(bundle, tmp_path / "repository")
    assert found.ensembles == () and len(found.models) == 2
    (note,) = found.notes
    assert note.startswith("no ensemble for the plan all") and re.search(why, note), note


def test_one_name_at_both_ends_makes_no_ensemble(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    x, a = ("x", "float32", ROW), ("a", "float32", ROW)
    bundle = make_bundle({"one": ("edge", (x,), (a,)), "two": ("cloud", (a,), (x,))})
    found = written(bundle, tmp_path / "repository")
    assert found.ensembles == () and "one name: x" in found.notes[0]


def test_a_fixed_batch_is_not_batched_and_scalars_a_row_are_reshaped(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    fixed = make_bundle({"tail": ("cloud", (("x", "float32", (1, "width", 4)),), (("y", "float32", (1, "width", 4)),))})
    written(fixed, tmp_path / "fixed")
    config = read(tmp_path / "fixed" / "Net.9.tail")
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [1, -1, 4]
    assert not config.HasField("dynamic_batching")
    fixed.unlink()
    scalars = make_bundle({"tail": ("cloud", (("x", "float32", ("batch",)),), (("y", "float32", ("batch",)),))})
    written(scalars, tmp_path / "scalars")
    config = read(tmp_path / "scalars" / "Net.9.tail")
    assert config.max_batch_size == 16 and list(config.input[0].dims) == [1]
    assert config.input[0].HasField("reshape") and list(config.input[0].reshape.shape) == []


def test_what_lies_beside_a_graph_goes_along(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    x, y = (("x", "float32", ROW),), (("y", "float32", ROW),)
    written(make_bundle({"tail": ("cloud", x, y)}, companion=".weights"), tmp_path / "repository")
    folder = tmp_path / "repository" / "Net.9.tail" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "tail.weights"]
    (tmp_path / "net.edgekit").unlink()
    written(make_bundle({"tail": ("cloud", x, y)}, companion=".torch.pt2"), tmp_path / "other")
    assert [path.name for path in (tmp_path / "other" / "Net.9.tail" / "1").iterdir()] == ["model.onnx"]


def test_other_formats_are_named_and_nothing_is_written(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    x, y = (("x", "float32", ROW),), (("y", "float32", ROW),)
    bundle = make_bundle({"tail": ("cloud", x, y)}, format="litert")
    with pytest.raises(DeviceError, match=r"Net\.9\.tail \(litert\)"):
        written(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    with pytest.raises(NodeError, match="no part for the tier edge"):
        written(bundle, tmp_path / "repository", tier="edge")


def test_what_is_there_is_replaced_only_when_told_and_only_a_repository(tail_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    output.mkdir()
    with Bundle.open(tail_bundle) as bundle:
        write_repository(bundle, output)  # an empty folder is nobody's
        with pytest.raises(OutputError, match="exists"):
            write_repository(bundle, output)
        (output / "Net.9.tail" / "stale").write_text("old")
        write_repository(bundle, output, force=True)
        assert not (output / "Net.9.tail" / "stale").exists()
        (output / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"notes\.txt"):
            write_repository(bundle, output, force=True)
        assert (output / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.edgekit", "repository"]


def test_a_failure_in_the_middle_leaves_the_former_repository(
    tail_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "repository"
    with Bundle.open(tail_bundle) as bundle:
        write_repository(bundle, output)
        before = (output / "Net.9.tail" / "config.pbtxt").read_text()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("edgekit.deploy.triton.shutil.copyfile", full)
        with pytest.raises(OutputError, match="No space left"):
            write_repository(bundle, output, force=True)
    assert (output / "Net.9.tail" / "config.pbtxt").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.edgekit", "repository"]


@pytest.mark.parametrize("text", ['say "hi"', "back\\slash", "two\nlines", "grüß", "tab\t"])
def test_text_format_escapes_what_is_in_a_name(text: str) -> None:
    config = text_format.Parse(own_text_format({"name": text, "platform": "x"}), ModelConfig())
    assert config.name == text


def test_text_format_writes_every_kind_of_field() -> None:
    fields = {
        "name": "m",
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": Symbol("TYPE_INT8"), "dims": [1, -1], "is_shape_tensor": True}],
    }
    config = text_format.Parse(own_text_format(fields), ModelConfig())
    assert config.max_batch_size == 4 and list(config.input[0].dims) == [1, -1] and config.input[0].is_shape_tensor
