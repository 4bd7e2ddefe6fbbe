"""Features as they are: raw bytes in planes, compressed by zstandard where that helps.

Planes are the first bytes of all elements, then the second, ...: exponents lie together and compress. zstandard's
output is the same on every processor for one version of the library; any version reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import zstandard

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import Codec
from edgekit.tensors import DTYPES

LEVEL = 3
STORED, COMPRESSED = b"\0", b"\1"


class PlainCodec(Codec):
    """Any number of features of any dtype. Rate 0: exact; rate 1: floats of more bits as float16."""

    def _load(self, tables: bytes | None) -> None:
        if tables is not None:
            raise CodecError(f"{len(tables)} bytes of tables, allowed none for a plain codec")
        if self.rates > 2:
            raise CodecError(f"{self.rates} rates, allowed 1 or 2")

    def _dtypes(self, rate: int) -> list[np.dtype]:
        """What each feature is sent as, little-endian."""
        own = [DTYPES[spec.dtype] for spec in self.features]
        sent = [np.dtype("float16") if rate == 1 and dtype.kind == "f" else dtype for dtype in own]
        return [dtype.newbyteorder("<") for dtype in sent]

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        planes = []
        for spec, values, dtype in zip(self.features, arrays, self._dtypes(rate), strict=True):
            with np.errstate(over="ignore"):
                sent = np.ascontiguousarray(values, dtype)
            if dtype.kind == "f" and not np.isfinite(sent).all():
                largest = np.finfo(dtype).max
                raise CodecError(f"feature {spec.name!r} is not finite as {dtype.name}, allowed up to {largest:.5g}")
            planes.append(sent.reshape(-1, 1).view(np.uint8).T.tobytes())
        raw = b"".join(planes)
        packed = zstandard.ZstdCompressor(LEVEL, write_content_size=True).compress(raw)
        return COMPRESSED + packed if len(packed) < len(raw) else STORED + raw

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        dtypes = self._dtypes(rate)
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        raw, start, arrays = _unpack(payload, sum(sizes)), 0, []
        for spec, shape, dtype, size in zip(self.features, shapes, dtypes, sizes, strict=True):
            planes = np.frombuffer(raw[start : start + size], np.uint8).reshape(dtype.itemsize, -1)
            values = np.ascontiguousarray(planes.T).view(dtype).reshape(shape)
            if dtype.kind == "f" and not np.isfinite(values).all():
                raise CodecError(f"feature {spec.name!r} is not finite")
            if dtype.kind == "b" and (planes > 1).any():
                raise CodecError(f"feature {spec.name!r} has a truth value above 1")
            arrays.append(values.astype(DTYPES[spec.dtype], copy=False))
            start += size
        return arrays


def _unpack(payload: bytes, size: int) -> bytes:
    """`size` bytes, and memory for no more whatever the payload states."""
    kind, body = payload[:1], payload[1:]
    if kind == STORED and len(body) == size:
        return body
    if kind != COMPRESSED or len(body) >= size:
        raise CodecError(f"{len(payload)} bytes are no plain payload of {size} bytes")
    try:
        if zstandard.get_frame_parameters(body).content_size != size:
            raise CodecError(f"a compressed payload of another size, allowed {size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"a damaged payload: {error}") from error
    if len(raw) != size:
        raise CodecError(f"a payload of {len(raw)} bytes, allowed {size}")
    return raw
