"""Arrays through raw contents, typed contents and JSON, and everything that does not fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import EdgekitError, FrameError, InputError
from edgekit.runtimes.protocol.calls import (
    InferAnswer,
    InferCall,
    answer_from_message,
    answer_to_message,
    call_from_message,
    call_to_message,
)
from edgekit.runtimes.protocol.http_body import read_call, write_answer
from edgekit.runtimes.protocol.messages import ModelInferRequest
from edgekit.runtimes.protocol.tensors import (
    CONTENTS,
    DTYPES,
    checked_shape,
    from_raw,
    from_values,
    object_array,
    to_raw,
)

few = settings(max_examples=40, deadline=None)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
arrays = st.sampled_from(sorted(DTYPES)).flatmap(lambda name: hnp.arrays(DTYPES[name], shapes))
texts = st.lists(st.binary(max_size=9), max_size=6)


@few
@given(arrays, st.dictionaries(st.text(max_size=5), st.one_of(st.booleans(), st.integers(-9, 9), st.text(max_size=5))))
def test_calls_come_back_from_messages_as_they_went(array: np.ndarray, parameters: dict[str, Any]) -> None:
    call = InferCall("m", {"x": array}, parameters, version="2", id="i", outputs=("y",))
    back = call_from_message(ModelInferRequest.FromString(call_to_message(call).SerializeToString()))
    assert (back.model, back.version, back.id, back.outputs) == ("m", "2", "i", ("y",))
    assert {key: back.parameters[key] for key in parameters} == parameters
    np.testing.assert_array_equal(back.tensors["x"], array)
    assert back.tensors["x"].dtype == array.dtype


@few
@given(arrays)
def test_answers_come_back_from_messages_as_they_went(array: np.ndarray) -> None:
    back = answer_from_message(answer_to_message(InferAnswer("m", "1", {"y": array})))
    np.testing.assert_array_equal(back.tensors["y"], array)


@few
@given(texts)
def test_bytes_elements_keep_their_lengths(items: list[bytes]) -> None:
    array = object_array(items)
    assert list(from_raw("x", "BYTES", array.shape, to_raw(array))) == items


def test_big_endian_arrays_are_sent_little_endian() -> None:
    assert to_raw(np.array([1], ">i4")) == b"\1\0\0\0"


def test_bf16_is_read_as_float32() -> None:
    np.testing.assert_array_equal(from_raw("x", "BF16", (2,), b"\x80\x3f\x00\xc0"), np.array([1, -2], np.float32))


@few
@given(st.sampled_from(["BYTES", "BOOL", "FP32", "INT64", "BF16", "no"]), shapes, st.binary(max_size=40))
def test_hostile_raw_contents_are_read_or_refused(datatype: str, shape: tuple[int, ...], data: bytes) -> None:
    try:
        array = from_raw("x", datatype, shape, data)
    except InputError:
        return
    assert array.shape == shape


@pytest.mark.parametrize("data", [b"\5\0\0\0abc", b"\0\0\0", b"\xff\xff\xff\xffabc", b"\1\0\0\0ab"])
def test_bytes_with_lengths_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="4-byte length"):
        from_raw("x", "BYTES", (1,), data)


@pytest.mark.parametrize(
    "shape", [None, "3", [-1], [1.0], [True], [1] * 17, [1 << 40], [1 << 20, 1 << 20], [0, 1 << 39, 2]]
)
def test_shapes_that_cannot_be_are_refused(shape: Any) -> None:
    with pytest.raises(InputError):
        checked_shape("x", shape)


@pytest.mark.parametrize("datatype", sorted(CONTENTS))
def test_typed_contents_are_read(datatype: str) -> None:
    message = ModelInferRequest(model_name="m")
    entry = message.inputs.add(name="x", datatype=datatype, shape=[2])
    values: list[Any] = [b"a", b""] if datatype == "BYTES" else [1, 0]
    getattr(entry.contents, CONTENTS[datatype]).extend(values)
    assert list(call_from_message(message).tensors["x"]) == values


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_need_raw_contents(datatype: str) -> None:
    message = ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=datatype, shape=[0])
    with pytest.raises(InputError, match="raw contents"):
        call_from_message(message)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InputError):
        from_values("x", "UINT8", (1,), [300])


def test_raw_and_typed_contents_together_are_refused() -> None:
    message = call_to_message(InferCall("m", {"x": np.zeros(1, np.float32)}))
    message.inputs[0].contents.fp32_contents.append(1.0)
    with pytest.raises(InputError, match="raw and typed"):
        call_from_message(message)


def test_raw_contents_of_another_number_are_refused() -> None:
    message = call_to_message(InferCall("m", {"x": np.zeros(1, np.float32)}))
    message.raw_input_contents.append(b"")
    with pytest.raises(InputError, match="2 raw contents for 1 tensors"):
        call_from_message(message)


def test_changed_bytes_are_noticed() -> None:
    message = answer_to_message(InferAnswer("m", "1", {"y": np.zeros(2, np.float32)}))
    message.raw_output_contents[0] = b"\0" * 7 + b"\1"
    with pytest.raises(FrameError, match="checksum"):
        answer_from_message(message)


@few
@given(arrays.filter(lambda array: array.dtype.kind != "f"), st.booleans())
def test_http_bodies_come_back_as_they_went(array: np.ndarray, binary: bool) -> None:
    body, length = write_answer(InferAnswer("m", "1", {"x": array}, {"a": 1}), {"": binary})
    sent = body.replace(b'"outputs"', b'"inputs"', 1)
    call, _ = read_call(sent, None if length is None else str(length - 1), "m", "")
    np.testing.assert_array_equal(call.tensors["x"], array)
    assert call.parameters == {"a": 1}


@few
@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=4), st.integers(0, 300).map(str)))
def test_hostile_bodies_are_refused_cleanly(body: bytes, length: str | None) -> None:
    with pytest.raises(EdgekitError):
        read_call(body, length, "m", "")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


@few
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.one_of(st.just("x"), json_values),
            "shape": st.one_of(st.just([2]), json_values),
            "datatype": st.one_of(st.sampled_from(["FP32", "INT8", "BYTES", "BOOL"]), json_values),
            "data": json_values,
            "parameters": st.one_of(st.fixed_dictionaries({"binary_data_size": json_values}), json_values),
        },
    )
)
def test_hostile_inputs_are_read_or_refused_cleanly(entry: dict[str, Any]) -> None:
    try:
        call, _ = read_call(json.dumps({"inputs": [entry]}).encode(), None, "m", "")
    except InputError:
        return
    assert list(call.tensors) == [entry["name"]]
