"""A call and its answer as HTTP bodies: JSON, and the binary tensor extension behind it.

With the extension a body is JSON first, its length in the header `Inference-Header-Content-Length`, then the raw
contents of those tensors that state a `binary_data_size`, in order.

Source: Open Inference Protocol v2, REST section; Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.errors import InputError, SessionError
from edgekit.runtimes.protocol.calls import InferAnswer, InferCall, Parameter
from edgekit.runtimes.protocol.tensors import checked_shape, datatype_of, from_raw, from_values, to_raw

JSON_LENGTH = "inference-header-content-length"

_INTEGERS = frozenset({int})
_NUMBERS = frozenset({int, float})
_ALLOWED_TYPES = {
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
    "FP16": _NUMBERS,
    "FP32": _NUMBERS,
    "FP64": _NUMBERS,
}
_MAX_DEPTH = 16


def read_call(body: bytes, json_length: str | None, model: str, version: str) -> tuple[InferCall, dict[str, bool]]:
    """The call, and for each output whether its data shall be binary ("" for all that are not named).

    Raises InputError for anything that is not what the protocol says.
    """
    head, tail = _split(body, json_length)
    request = read_object(head)
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InputError("the request has no list of inputs", hint="the model's metadata names them")
    tensors: dict[str, np.ndarray] = {}
    for entry in inputs:
        name, array, tail = _read_tensor(entry, tail)
        if name in tensors:
            raise InputError(f"tensor {name!r} comes twice")
        tensors[name] = array
    if tail:
        raise InputError(f"{len(tail)} bytes follow the binary tensors", hint="binary_data_size counts them")
    parameters = _parameters(request, "the request")
    wants_binary = {"": _flag(parameters.pop("binary_data_output", False), "binary_data_output")}
    outputs = request.get("outputs", [])
    if not isinstance(outputs, list):
        raise InputError("outputs are no list")
    for entry in outputs:
        name = _name(entry, "an output")
        of_output = _parameters(entry, f"output {name!r}")
        wants_binary[name] = _flag(of_output.get("binary_data", wants_binary[""]), "binary_data")
    call = InferCall(
        model=model,
        version=version,
        id=_text(request.get("id", ""), "id"),
        tensors=tensors,
        parameters=parameters,
        outputs=tuple(name for name in wants_binary if name),
    )
    return call, wants_binary


def write_answer(answer: InferAnswer, wants_binary: Mapping[str, bool]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary data follow. Raises SessionError for NaN or infinity that
    would have to be JSON."""
    outputs, tail = [], []
    for name, array in answer.tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if wants_binary.get(name, wants_binary.get("", False)):
            raw = to_raw(array)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        elif array.dtype == object:
            entry["data"] = [item.decode("utf-8", errors="replace") for item in array.ravel()]
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SessionError(
                    f"output {name!r} holds NaN or infinity, which JSON cannot say", hint="ask for it with binary_data"
                )
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    described: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": outputs}
    if answer.id:
        described["id"] = answer.id
    if answer.parameters:
        described["parameters"] = dict(answer.parameters)
    head = json.dumps(described, allow_nan=False, separators=(",", ":")).encode()
    return (head, None) if not tail else (b"".join([head, *tail]), len(head))


def _split(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    if json_length is None:
        return body, memoryview(b"")
    if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 12):
        raise InputError(f"Inference-Header-Content-Length is {json_length!r:.40}, allowed a number")
    length = int(json_length)
    if length > len(body):
        raise InputError(f"Inference-Header-Content-Length is {length}, allowed up to the body's {len(body)}")
    return body[:length], memoryview(body)[length:]


def read_object(head: bytes) -> dict[str, Any]:
    """Raises InputError for what is not one JSON object in UTF-8."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        request = json.loads(head, parse_constant=refuse)
    except RecursionError as error:
        raise InputError("the body's JSON is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"the body is not JSON: {error!s:.100}") from error
    if not isinstance(request, dict):
        raise InputError("the body is not a JSON object")
    return request


def _read_tensor(entry: Any, tail: memoryview) -> tuple[str, np.ndarray, memoryview]:
    name = _name(entry, "an input")
    shape = checked_shape(name, entry.get("shape"))
    datatype = _text(entry.get("datatype"), f"the datatype of {name!r}")
    size = _parameters(entry, f"input {name!r}").get("binary_data_size")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(tail):
            raise InputError(f"input {name!r}: binary_data_size {size!r:.40}, allowed 0 to {len(tail)}")
        if "data" in entry:
            raise InputError(f"input {name!r} has data and binary_data_size, allowed one of them")
        return name, from_raw(name, datatype, shape, tail[:size]), tail[size:]
    values = _flat(name, entry.get("data"))
    if not set(map(type, values)) <= _ALLOWED_TYPES.get(datatype, _INTEGERS):
        raise InputError(f"input {name!r} holds values that are not {datatype:.40}")
    if datatype in ("FP16", "FP32", "FP64"):
        return name, _floats(name, datatype, shape, values), tail
    return name, from_values(name, datatype, shape, values), tail


def _floats(name: str, datatype: str, shape: tuple[int, ...], values: list[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = from_values(name, datatype, shape, values)
    if not np.isfinite(array).all():
        raise InputError(f"input {name!r} holds numbers beyond {datatype}")
    return array


def _flat(name: str, data: Any) -> list[Any]:
    """Nested lists are read row by row."""
    if not isinstance(data, list):
        raise InputError(f"input {name!r} has neither data nor binary_data_size")
    values: list[Any] = data
    for _ in range(_MAX_DEPTH):
        if not values or not isinstance(values[0], list):
            return values
        if not all(isinstance(row, list) for row in values):
            break
        values = [value for row in values for value in row]
    raise InputError(f"input {name!r}: its data are lists of uneven depth")


def _name(entry: Any, what: str) -> str:
    if not isinstance(entry, dict):
        raise InputError(f"{what} is no JSON object")
    name = _text(entry.get("name"), f"the name of {what}")
    if not name:
        raise InputError(f"{what} has no name")
    return name


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r:.40}, allowed text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not Unicode text") from error
    return value


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{what} is {value!r:.40}, allowed true or false")
    return value


def _parameters(entry: Mapping[str, Any], what: str) -> dict[str, Parameter]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"the parameters of {what} are no JSON object")
    for key, value in parameters.items():
        _text(key, f"a parameter's name of {what}")
        if isinstance(value, str):
            _text(value, f"the parameter {key!r:.40} of {what}")
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"the parameter {key!r:.40} of {what} is {value!r:.40}, allowed text, a number or a truth")
    return dict(parameters)
