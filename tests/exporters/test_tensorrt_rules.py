from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.exporters.tensorrt_rules import NEWER, PARSERS, Profile, check

WEIGHT = np.ones((4, 3, 1, 1), np.int8)
SCALES = np.full(4, 0.1, np.float32)


def _graph(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: Sequence[int | str] = (1, 3, 4, 4),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _quantized_conv(**changes: np.ndarray | int) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv(DQ(weight)) -> y by TensorRT's rules, but for `changes`."""
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": WEIGHT, "ws": SCALES, "wz": np.zeros(4, np.int8)}
    axis = int(changes.pop("axis", 0))  # type: ignore[arg-type]
    constants.update(changes)  # type: ignore[arg-type]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dequantize_w", axis=axis),
        helper.make_node("Conv", ["d", "wd"], ["y"], name="conv"),
    ]
    return _graph(nodes, {name: np.asarray(value) for name, value in constants.items()})


def _check(proto: onnx.ModelProto, *, half: bool = False, **profiles: Profile) -> tuple[str, ...]:
    return check(proto, NEWER, profiles, half=half)


def test_a_graph_by_the_rules_passes() -> None:
    assert _check(_quantized_conv()) == ()


@pytest.mark.parametrize(
    ("change", "node", "rule"),
    [
        ({"z": np.int8(3)}, "quantize_x", "zero point other than 0"),
        ({"z": np.uint8(0)}, "quantize_x", "type UINT8, allowed INT8"),
        ({"wz": np.array([0, 0, 1, 0], np.int8)}, "dequantize_w", "zero point other than 0"),
        ({"s": np.float32(0)}, "dequantize_x", "not positive and finite"),
        ({"s": np.float32("nan")}, "quantize_x", "not positive and finite"),
        ({"s": np.full(3, 0.1, np.float32), "z": np.zeros(3, np.int8)}, "quantize_x", "channel on an activation"),
        ({"axis": 1, "ws": SCALES[:3], "wz": np.zeros(3, np.int8)}, "dequantize_w", "axis 1, allowed 0 for Conv"),
        ({"w": WEIGHT.astype(np.uint8), "wz": np.zeros(4, np.uint8)}, "dequantize_w", "stored UINT8"),
    ],
)
def test_a_broken_rule_of_explicit_quantization_names_the_node(
    change: dict[str, np.ndarray | int], node: str, rule: str
) -> None:
    with pytest.raises(ExportError, match=rule) as caught:
        _check(_quantized_conv(**change))
    assert f"{node}: " in caught.value.message


def test_a_quantized_tensor_that_is_not_dequantized_is_refused() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize_x"),
        helper.make_node("Flatten", ["q"], ["y"], name="flatten"),
    ]
    with pytest.raises(ExportError, match=r"quantize_x: a quantized tensor that is not dequantized"):
        _check(_graph(nodes, {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}))


def test_quantize_without_a_zero_point_means_uint8_and_is_refused() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="dequantize_x"),
    ]
    with pytest.raises(ExportError, match="quantize_x: integers of type UINT8"):
        _check(_graph(nodes, {"s": np.array(0.1, np.float32)}))


@pytest.mark.parametrize(("transposed", "axis", "allowed"), [(1, 0, True), (1, 1, False), (0, 1, True), (0, 0, False)])
def test_the_weight_axis_of_a_gemm_follows_its_transposition(transposed: int, axis: int, allowed: bool) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="dequantize_w", axis=axis),
        helper.make_node("Gemm", ["x", "wd"], ["y"], name="gemm", transB=transposed),
    ]
    constants = {"w": np.ones((3, 3), np.int8), "s": np.full(3, 0.1, np.float32), "z": np.zeros(3, np.int8)}
    proto = _graph(nodes, constants, shape=(1, 3))
    if allowed:
        assert _check(proto) == ()
    else:
        with pytest.raises(ExportError, match=f"dequantize_w: scales along axis {axis}"):
            _check(proto)


def test_a_sum_with_one_quantized_side_is_slow_not_wrong() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize_x"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Add", ["d", "r"], ["y"], name="residual"),
    ]
    notes = _check(_graph(nodes, {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}))
    assert len(notes) == 1 and notes[0].startswith("residual: only one input")


@pytest.mark.parametrize(
    ("operator", "parser", "known"),
    [("LayerNormalization", NEWER, True), ("LayerNormalization", PARSERS["sm_53"], False), ("Unique", NEWER, False)],
)
def test_operators_are_those_of_the_release(operator: str, parser: object, known: bool) -> None:
    node = helper.make_node(operator, ["x", "s"], ["y"], name="odd")
    proto = _graph([node], {"s": np.ones(4, np.float32)}, opset=13)
    if known:
        check(proto, parser, {}, half=False)  # type: ignore[arg-type]
    else:
        with pytest.raises(UnsupportedOperatorError, match="node odd") as caught:
            check(proto, parser, {}, half=False)  # type: ignore[arg-type]
        assert caught.value.operator == operator


def test_an_operator_inside_a_branch_is_found() -> None:
    branch = helper.make_graph(
        [helper.make_node("Unique", ["x"], ["u"], name="inner")],
        "b",
        [],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch)
    with pytest.raises(UnsupportedOperatorError, match="node inner"):
        _check(_graph([node], {"c": np.array(True)}))


def test_an_opset_past_the_parsers_is_refused() -> None:
    with pytest.raises(ExportError, match="opset 18, allowed 17"):
        _check(_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], {}, opset=18))


@pytest.mark.parametrize(
    ("profile", "rule"),
    [
        (None, "without an optimization profile"),
        (Profile((1, 3), (2, 3), (4, 3)), None),
        (Profile((1, 3), (4, 3), (2, 3)), "profile 1/4/2 in dimension 0"),
        (Profile((1, 2), (1, 3), (1, 3)), "profile 2/3/3 in dimension 1 of size 3"),
        (Profile((1,), (1,), (1,)), "another rank than 2"),
    ],
)
def test_dynamic_shapes_need_an_ordered_profile(profile: Profile | None, rule: str | None) -> None:
    proto = _graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], {}, shape=("batch", 3))
    profiles = {} if profile is None else {"x": profile}
    if rule is None:
        assert _check(proto, **profiles) == ()
    else:
        with pytest.raises(ExportError, match=f"x: .*{rule}"):
            _check(proto, **profiles)


@pytest.mark.parametrize(
    ("value", "half", "rule"),
    [
        (np.float32(7e4), True, "leaves fp16's range"),
        (np.float32(7e4), False, None),
        (np.float32("inf"), False, "NaN or infinity"),
        (np.float32("-inf"), True, None),
        (np.full(2, -np.inf, np.float32), False, "NaN or infinity"),
        (np.float64(1), False, "type DOUBLE"),
    ],
)
def test_constants_lie_in_the_range_of_their_precision(
    value: np.generic | np.ndarray, half: bool, rule: str | None
) -> None:
    proto = _graph([helper.make_node("Mul", ["x", "c"], ["y"], name="scale")], {"c": np.asarray(value)})
    if rule is None:
        assert _check(proto, half=half) == ()
    else:
        with pytest.raises(ExportError, match=f"c: .*{rule}"):
            _check(proto, half=half)
