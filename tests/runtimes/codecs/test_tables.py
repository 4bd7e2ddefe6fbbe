from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.tables import DTYPES, MAX_HEADER_BYTES, PREFIX, read_tables, write_tables

ARRAYS = {"b": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.array([0.5, -1], np.float32)}
SETTINGS = {"axis": 1, "name": "é", "on": True, "share": 0.25}


def with_header(change: dict, body: bytes = b"") -> bytes:
    header = {"arrays": {}, "kind": "k", "settings": {}} | change
    raw = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return PREFIX.pack(b"EKTB", 1, len(raw)) + raw + body


def test_settings_and_arrays_come_back() -> None:
    settings, arrays = read_tables(write_tables("k", SETTINGS, ARRAYS), "k")
    assert settings == SETTINGS and list(arrays) == ["a", "b"]
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and (arrays[name] == array).all()
        assert not arrays[name].flags.writeable


def test_order_and_layout_of_what_is_written_do_not_matter() -> None:
    swapped = {"a": ARRAYS["a"], "b": np.asfortranarray(ARRAYS["b"])}
    assert write_tables("k", dict(reversed(SETTINGS.items())), swapped) == write_tables("k", SETTINGS, ARRAYS)


def test_arrays_of_every_allowed_dtype_and_of_no_elements_come_back() -> None:
    arrays = {name.strip("<|"): np.zeros((2, 0, 3), name) for name in DTYPES} | {"scalar": np.array(3, np.int32)}
    assert read_tables(write_tables("k", {}, arrays), "k")[1]["scalar"].shape == ()


def test_what_a_reader_would_refuse_is_not_written() -> None:
    for array in (
        np.zeros(1, np.float64),
        np.array(["x"]),
        np.array([np.nan], np.float32),
        np.zeros((1,) * 5, np.int8),
    ):
        with pytest.raises(CodecError):
            write_tables("k", {}, {"a": array})
    with pytest.raises(CodecError):
        write_tables("k", {"x": float("nan")}, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"EKTB",
        write_tables("k", SETTINGS, ARRAYS) + b"\0",
        write_tables("k", SETTINGS, ARRAYS)[:-1],
        b"XKTB" + write_tables("k", SETTINGS, ARRAYS)[4:],
        write_tables("other", SETTINGS, ARRAYS),
        PREFIX.pack(b"EKTB", 2, 0),
        PREFIX.pack(b"EKTB", 1, MAX_HEADER_BYTES + 1) + bytes(MAX_HEADER_BYTES + 1),
        PREFIX.pack(b"EKTB", 1, 60_000) + b"[" * 60_000,
        PREFIX.pack(b"EKTB", 1, 2) + b"{}",
        with_header({"extra": 1}),
        with_header({"settings": []}),
        with_header({"arrays": []}),
        with_header({"arrays": {"a": {"dtype": "|O", "offset": 0, "shape": [1]}}}, bytes(8)),
        with_header({"arrays": {"a": {"dtype": "<f4", "offset": 4, "shape": [1]}}}, bytes(8)),
        with_header({"arrays": {"a": {"dtype": "<f4", "offset": 0, "shape": [-1]}}}, bytes(4)),
        with_header({"arrays": {"a": {"dtype": "<f4", "offset": 0, "shape": [True]}}}, bytes(4)),
        with_header({"arrays": {"a": {"dtype": "<f4", "offset": 0, "shape": [1 << 26, 1 << 26]}}}, bytes(4)),
        with_header({"arrays": {"a": {"dtype": ["<f4"], "offset": 0, "shape": [1]}}}, bytes(4)),
        with_header({"arrays": {f"{i:03}": {"dtype": "|u1", "offset": 0, "shape": [0]} for i in range(65)}}),
    ],
)
def test_hostile_tables_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        read_tables(data, "k")


def test_repeated_keys_and_spaces_in_the_header_are_refused() -> None:
    for raw in (
        b'{"arrays":{},"kind":"x","kind":"k","settings":{}}',
        b'{"arrays":{}, "kind":"k","settings":{}}',
        b'{"kind":"k","arrays":{},"settings":{}}',
    ):
        with pytest.raises(CodecError, match="canonical"):
            read_tables(PREFIX.pack(b"EKTB", 1, len(raw)) + raw, "k")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(at=st.integers(0, 400), byte=st.integers(0, 255), extra=st.binary(max_size=8))
def test_changed_bytes_are_refused_or_read_as_canonical(at: int, byte: int, extra: bytes) -> None:
    data = bytearray(write_tables("k", SETTINGS, ARRAYS))
    data[at % len(data)] = byte
    data += extra
    try:
        read, arrays = read_tables(bytes(data), "k")
    except CodecError:
        return
    assert write_tables("k", read, arrays) == bytes(data)
