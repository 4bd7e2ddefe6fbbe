import numpy as np
import pytest

from edgekit.devices.onnx_bytes import Node, encode_model


def test_the_encoded_model_is_what_onnx_itself_reads():
    onnx = pytest.importorskip("onnx")
    weight = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    model = onnx.load_from_string(
        encode_model(
            [Node("MatMulInteger", ("x", "w"), "y"), Node("Transpose", ("y",), "z", {"perm": (1, 0)})],
            {"w": weight},
            {"x": ("uint8", (300, 3))},
            ("z", "int32", (4, 300)),
        )
    )
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger", "Transpose"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), weight)
    assert list(model.graph.node[1].attribute[0].ints) == [1, 0]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 300


def test_negative_attributes_survive():
    onnx = pytest.importorskip("onnx")
    data = encode_model(
        [Node("Softmax", ("x",), "y", {"axis": -1})], {}, {"x": ("float32", (2, 3))}, ("y", "float32", (2, 3))
    )
    assert onnx.load_from_string(data).graph.node[0].attribute[0].i == -1
