"""The asset that a codec loads: a JSON header and raw little-endian arrays, one canonical form for one content.

    b"EKTB" | version u16 | header length u32 | header, canonical JSON | arrays, one after the other by name

The header is `{"arrays": {name: {"dtype", "offset", "shape"}}, "kind": ..., "settings": {...}}`. A reader accepts what
`write_tables` writes and nothing else: the header must be the canonical form of itself, arrays must touch.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.errors import CodecError

MAGIC, VERSION = b"EKTB", 1
PREFIX = struct.Struct("<4sHI")
MAX_BYTES, MAX_HEADER_BYTES, MAX_ARRAYS, MAX_DIMENSIONS = 64 << 20, 64 << 10, 64, 4
DTYPES = ("<f4", "<i4", "<u4", "<i2", "<u2", "|i1", "|u1")

Settings = dict[str, Any]
Arrays = dict[str, np.ndarray]


def write_tables(kind: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The same content gives the same bytes. Raises CodecError for a dtype or size that a reader would refuse."""
    entries, parts, offset = {}, [], 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in DTYPES:
            raise CodecError(f"array {name!r} of dtype {array.dtype}, allowed {', '.join(DTYPES)}")
        entries[name] = {"dtype": array.dtype.str, "offset": offset, "shape": list(array.shape)}
        parts.append(array.tobytes())
        offset += array.nbytes
    header = _canonical({"arrays": entries, "kind": kind, "settings": dict(settings)})
    data = b"".join([PREFIX.pack(MAGIC, VERSION, len(header)), header, *parts])
    read_tables(data, kind)
    return data


def read_tables(data: bytes | None, kind: str) -> tuple[Settings, Arrays]:
    """Settings and read-only arrays, which are views of `data`. Raises CodecError for anything but a table of `kind`.

    What the numbers mean is for the codec to check; floats are finite.
    """
    if data is None:
        raise CodecError(f"no tables, allowed the tables of a {kind!r} codec", hint="the bundle lacks an asset")
    if not PREFIX.size <= len(data) <= MAX_BYTES:
        raise CodecError(f"tables of {len(data)} bytes, allowed {PREFIX.size} to {MAX_BYTES}")
    magic, version, length = PREFIX.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise CodecError(f"tables begin with {magic!r} version {version}, allowed {MAGIC!r} version {VERSION}")
    start = PREFIX.size + length
    if length > MAX_HEADER_BYTES or start > len(data):
        raise CodecError(f"a header of {length} bytes, allowed {min(MAX_HEADER_BYTES, len(data) - PREFIX.size)}")
    header = _parse(bytes(data[PREFIX.size : start]))
    if header["kind"] != kind:
        raise CodecError(f"tables of a {header['kind']!r} codec, allowed {kind!r}")
    return header["settings"], _arrays(header["arrays"], memoryview(data)[start:])


def setting(settings: Settings, name: str, kind: type, low: float, high: float) -> Any:
    """The number or string `name`, its type exact, a number (or a string's length) within [low, high]. CodecError."""
    value = settings.get(name)
    if type(value) is not kind or not low <= (len(value) if isinstance(value, str) else value) <= high:  # type: ignore[operator]
        raise CodecError(f"setting {name!r} is {value!r}, allowed {kind.__name__} from {low} to {high}")
    return value


def array(arrays: Arrays, name: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array `name` of that dtype and shape (None: any size). Raises CodecError."""
    found = arrays.get(name)
    if found is None or found.dtype.str != dtype or len(found.shape) != len(shape):
        got = "missing" if found is None else f"{found.dtype.str} {list(found.shape)}"
        raise CodecError(f"array {name!r} is {got}, allowed {dtype} {list(shape)}")
    if any(want is not None and want != size for want, size in zip(shape, found.shape, strict=True)):
        raise CodecError(f"array {name!r} has shape {list(found.shape)}, allowed {list(shape)}")
    return found


def _canonical(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CodecError(f"settings that JSON cannot hold: {error}") from error
    return text.encode("ascii")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"the tables' header is not JSON: {error}") from error
    if not isinstance(header, dict) or set(header) != {"arrays", "kind", "settings"} or _canonical(header) != raw:
        raise CodecError("the tables' header is not in canonical form")
    if not isinstance(header["arrays"], dict) or not isinstance(header["settings"], dict):
        raise CodecError("the tables' arrays and settings are no objects")
    return header


def _arrays(entries: dict[str, Any], body: memoryview) -> Arrays:
    if len(entries) > MAX_ARRAYS:
        raise CodecError(f"{len(entries)} arrays, allowed {MAX_ARRAYS}")
    arrays, offset = {}, 0
    for name, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "offset", "shape"}:
            raise CodecError(f"array {name!r} is not described by dtype, offset and shape")
        dtype, shape = entry["dtype"], entry["shape"]
        if dtype not in DTYPES:
            raise CodecError(f"array {name!r} of dtype {dtype!r}, allowed {', '.join(DTYPES)}")
        if (
            not isinstance(shape, list)
            or len(shape) > MAX_DIMENSIONS
            or not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape)
        ):
            raise CodecError(f"array {name!r} of shape {shape!r}, allowed {MAX_DIMENSIONS} sizes")
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if type(entry["offset"]) is not int or entry["offset"] != offset or nbytes > len(body) - offset:
            raise CodecError(
                f"array {name!r} takes {nbytes} bytes at {entry['offset']!r}, allowed {len(body) - offset}"
            )
        view = np.frombuffer(body[offset : offset + nbytes], dtype).reshape(shape)
        if view.dtype.kind == "f" and not np.isfinite(view).all():
            raise CodecError(f"array {name!r} is not finite")
        arrays[name], offset = view, offset + nbytes
    if offset != len(body):
        raise CodecError(f"{len(body) - offset} bytes follow the arrays, allowed none")
    return arrays
