"""numpy arrays <-> the protocol's tensors: datatype names, raw contents, BYTES with lengths.

An array of datatype BYTES is a numpy object array of Python bytes. BF16, which numpy lacks, is read as float32 (each
of its values is one) and never written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.errors import InputError

_NAMES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DTYPES: dict[str, np.dtype] = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in _NAMES.items()}
DATATYPES: dict[str, str] = {dtype: name for name, dtype in _NAMES.items()} | {"object": "BYTES"}
BYTES, BF16 = "BYTES", "BF16"

# Where typed contents (the alternative to raw ones) hold each datatype; half floats have no such place.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

_LENGTH = struct.Struct("<I")


def datatype_of(array: np.ndarray) -> str:
    """Raises InputError for a dtype that the protocol has no name for."""
    name = DATATYPES.get(array.dtype.name)
    if name is None:
        raise InputError(f"arrays of dtype {array.dtype} have no protocol datatype, allowed {', '.join(DATATYPES)}")
    return name


def checked_shape(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """Raises InputError for anything but a list of integers from 0 whose product is below 2^40, zeros left out."""
    if not isinstance(shape, list | tuple) or len(shape) > 16:
        raise InputError(f"tensor {name!r} has no usable shape", hint="give a list of at most 16 sizes")
    if any(isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 40 for size in shape):
        raise InputError(f"tensor {name!r} has the shape {list(shape)!r:.100}, allowed integers from 0")
    # An empty tensor's other sizes count too: numpy multiplies them all the same.
    if math.prod(size or 1 for size in shape) >= 1 << 40:
        raise InputError(f"tensor {name!r} has the shape {list(shape)!r:.100}, allowed below 2^40 elements")
    return tuple(shape)


def to_raw(array: np.ndarray) -> bytes:
    """Little-endian, row-major; BYTES elements each behind their length, an unsigned 32-bit integer."""
    if array.dtype == object:
        return b"".join(part for item in array.ravel() for part in (_LENGTH.pack(len(item)), item))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def from_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview) -> np.ndarray:
    """A read-only view of `data` where the datatype allows. Raises InputError where sizes do not agree."""
    if datatype == BYTES:
        return object_array(split_bytes(name, data, math.prod(shape)), shape)
    if datatype == BF16:
        _check_size(name, shape, 2, len(data))
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if datatype not in DTYPES:
        raise InputError(
            f"tensor {name!r} has the datatype {datatype!r:.40}, allowed {', '.join(CONTENTS)}, FP16, BF16"
        )
    dtype = DTYPES[datatype]
    _check_size(name, shape, dtype.itemsize, len(data))
    if datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise InputError(f"tensor {name!r} is BOOL with bytes other than 0 and 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _check_size(name: str, shape: tuple[int, ...], item_bytes: int, size: int) -> None:
    wanted = math.prod(shape) * item_bytes
    if wanted != size:
        raise InputError(f"tensor {name!r} of shape {list(shape)} holds {size} bytes, allowed {wanted}")


def split_bytes(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor's raw contents. Raises InputError unless they are exactly `count`."""
    view, at = memoryview(data), 0
    items: list[bytes] = []
    while at < len(view):
        if len(items) == count or at + 4 > len(view):
            break
        (size,) = _LENGTH.unpack_from(view, at)
        if at + 4 + size > len(view):
            break
        items.append(bytes(view[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(view) or len(items) != count:
        raise InputError(f"tensor {name!r}: {len(view)} bytes are not {count} elements with a 4-byte length each")
    return items


def object_array(items: Sequence[bytes], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """BYTES elements as a numpy array; flat without a shape."""
    array = np.empty(len(items), object)
    array[:] = list(items)
    return array if shape is None else array.reshape(shape)


def from_values(name: str, datatype: str, shape: tuple[int, ...], values: Sequence[Any]) -> np.ndarray:
    """Typed values, flat and row-major. Raises InputError for a wrong count or values out of the datatype's range."""
    if len(values) != math.prod(shape):
        raise InputError(f"tensor {name!r} of shape {list(shape)} has {len(values)} values, allowed {math.prod(shape)}")
    if datatype == BYTES:
        return object_array([v.encode() if isinstance(v, str) else v for v in values], shape)
    if datatype not in DTYPES:
        raise InputError(f"tensor {name!r} has the datatype {datatype!r:.40}, allowed {', '.join(CONTENTS)}")
    try:
        return np.array(values, DTYPES[datatype]).reshape(shape)
    except (OverflowError, ValueError, TypeError) as error:
        raise InputError(f"tensor {name!r} holds values that are not {datatype}: {error!s:.100}") from error
