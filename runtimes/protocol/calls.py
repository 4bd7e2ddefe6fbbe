"""A call to a model and its answer, free of any transport, and both as the protocol's gRPC messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np

from edgekit.errors import FrameError, InputError
from edgekit.runtimes.protocol.messages import ModelInferRequest, ModelInferResponse
from edgekit.runtimes.protocol.tensors import BF16, CONTENTS, checked_shape, datatype_of, from_raw, from_values, to_raw

Parameter = bool | int | float | str

CHECKSUM = "edgekit_crc32c"

_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class InferCall:
    """`version` "" is the newest; `outputs` empty asks for all. `tensors` in the caller's order."""

    model: str
    tensors: Mapping[str, np.ndarray]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    version: str = ""
    id: str = ""
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class InferAnswer:
    model: str
    version: str
    tensors: Mapping[str, np.ndarray]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    id: str = ""


def call_to_message(call: InferCall) -> Any:
    """An `inference.ModelInferRequest` with raw contents."""
    message = ModelInferRequest(model_name=call.model, model_version=call.version, id=call.id)
    _write_parameters(message.parameters, call.parameters)
    raw = [to_raw(array) for array in call.tensors.values()]
    for name, array in call.tensors.items():
        message.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
    message.raw_input_contents.extend(raw)
    for name in call.outputs:
        message.outputs.add(name=name)
    # A transport without TLS has nothing better than TCP's 16 bits against changed bytes; frames bring their own.
    if any(array.dtype != object for array in call.tensors.values()):
        message.parameters[CHECKSUM].int64_param = _checksum(raw)
    return message


def call_from_message(message: Any) -> InferCall:
    """Raises InputError for a request that breaks the protocol's rules, FrameError where its checksum does not fit."""
    # Each access to a field of bytes copies it: once is enough.
    raw = list(message.raw_input_contents)
    _check(message.parameters, raw)
    tensors = _read_tensors(message.inputs, raw)
    if not tensors:
        raise InputError("the request has no inputs", hint="the model's metadata lists them")
    return InferCall(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        tensors=tensors,
        parameters=_read_parameters(message.parameters),
        outputs=tuple(output.name for output in message.outputs),
    )


def answer_to_message(answer: InferAnswer) -> Any:
    """An `inference.ModelInferResponse` with raw contents."""
    message = ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    _write_parameters(message.parameters, answer.parameters)
    raw = [to_raw(array) for array in answer.tensors.values()]
    for name, array in answer.tensors.items():
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
    message.raw_output_contents.extend(raw)
    message.parameters[CHECKSUM].int64_param = _checksum(raw)
    return message


def answer_from_message(message: Any) -> InferAnswer:
    """Raises InputError for an answer that breaks the protocol's rules, FrameError where its checksum does not fit."""
    raw = list(message.raw_output_contents)
    _check(message.parameters, raw)
    return InferAnswer(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        tensors=_read_tensors(message.outputs, raw),
        parameters=_read_parameters(message.parameters),
    )


def _check(parameters: Any, contents: Iterable[bytes]) -> None:
    """Where a checksum came along: strangers send none."""
    if CHECKSUM in parameters and parameters[CHECKSUM].int64_param != _checksum(contents):
        raise FrameError("the checksum of the tensors does not fit: bytes changed on the way", hint="send them again")


def _checksum(contents: Iterable[bytes]) -> int:
    checksum = 0
    for content in contents:
        checksum = google_crc32c.extend(checksum, content)
    return int(checksum)


def _read_tensors(entries: Any, raw: Any) -> dict[str, np.ndarray]:
    if raw and len(raw) != len(entries):
        raise InputError(f"{len(raw)} raw contents for {len(entries)} tensors, allowed one each, or none at all")
    tensors: dict[str, np.ndarray] = {}
    for index, entry in enumerate(entries):
        name, datatype, shape = entry.name, entry.datatype, checked_shape(entry.name, list(entry.shape))
        if name in tensors:
            raise InputError(f"tensor {name!r} comes twice")
        if raw:
            if entry.HasField("contents"):
                raise InputError(f"tensor {name!r} has raw and typed contents, allowed one of them")
            tensors[name] = from_raw(name, datatype, shape, raw[index])
        elif datatype in CONTENTS:
            tensors[name] = from_values(name, datatype, shape, getattr(entry.contents, CONTENTS[datatype]))
        else:
            wanted = "raw contents" if datatype in ("FP16", BF16) else f"one of {', '.join(CONTENTS)}"
            raise InputError(f"tensor {name!r} has the datatype {datatype!r:.40}, allowed {wanted}")
    return tensors


def _read_parameters(entries: Any) -> dict[str, Parameter]:
    read: dict[str, Parameter] = {}
    for key, value in entries.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            read[key] = getattr(value, kind)
    return read


def _write_parameters(entries: Any, parameters: Mapping[str, Parameter]) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            entries[key].bool_param = value
        elif isinstance(value, str):
            entries[key].string_param = value
        elif isinstance(value, int):
            if value not in _INT64:
                raise InputError(f"parameter {key!r} is {value}, allowed 64-bit integers")
            entries[key].int64_param = value
        else:
            entries[key].double_param = value
