"""What goes over a link: a payload with who may read it, what it is, and a checksum over all of it.

    b"EK" | version << 4 | flags | rate u8 | plan 8 bytes | codec 4 | model 4 | [coarse u8] | [sequence varint]
    | features u8 | (dimensions u8 | size varint ...) ... | length varint | CRC32C u32 | payload

33 bytes for one feature of four dimensions; varints are LEB128, shortest form only. The checksum (little-endian) is
over everything but itself. Digests are cut short: they guard against versions that drifted apart, not against forgery
(that is TLS's and the signature's work), and both ends compare them in full when they meet. The plan's covers the
content of every part and codec, so that it gets 64 bits; the other two only tell what it was that changed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c

from edgekit.errors import FrameError, MismatchError
from edgekit.runtimes.codecs.base import MAX_ELEMENTS

MAGIC, VERSION = b"EK", 1
MAX_FEATURES, MAX_DIMENSIONS, MAX_PAYLOAD_BYTES = 16, 8, 64 << 20
MAX_RATE, MAX_SEQUENCE = 254, (1 << 32) - 1
PLAN_BYTES, CODEC_BYTES, MODEL_BYTES = 8, 4, 4
REFINES, NUMBERED = 1, 2
_HEAD = struct.Struct(f"<2sBB{PLAN_BYTES}s{CODEC_BYTES}s{MODEL_BYTES}s")
_CHECKSUM = struct.Struct("<I")

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Frame:
    """Digests are hexadecimal: whole ones going in; their first 16, 8 and 8 digits coming out.

    `coarse`: this payload refines one of that rate, sent before. `sequence`: the sender's number for it.
    """

    payload: bytes
    shapes: tuple[tuple[int, ...], ...]
    rate: int
    plan_digest: str
    codec_digest: str
    model_digest: str
    coarse: int | None = None
    sequence: int | None = None


def pack(frame: Frame) -> bytes:
    """Raises FrameError for what a frame cannot hold."""
    header = _header(frame)
    checksum = google_crc32c.extend(google_crc32c.value(header), frame.payload)
    return b"".join([header, _CHECKSUM.pack(checksum), frame.payload])


def frame_size(payload_bytes: int, shapes: Shapes) -> int:
    """Bytes on the wire of a payload of that size, neither numbered nor a refinement."""
    sizes = 1 + sum(1 + sum(len(_varint(size)) for size in shape) for shape in shapes)
    return _HEAD.size + sizes + len(_varint(payload_bytes)) + _CHECKSUM.size + payload_bytes


def unpack(data: bytes) -> Frame:
    """Raises FrameError for anything but one whole frame as `pack` writes it."""
    reader = _Reader(data)
    magic, mixed, rate, plan, codec, model = _HEAD.unpack(reader.take(_HEAD.size))
    version, flags = mixed >> 4, mixed & 15
    if magic != MAGIC or version != VERSION:
        raise FrameError(
            f"a frame begins with {magic!r} version {version}, allowed {MAGIC!r} version {VERSION}",
            hint="both ends need an edgekit of the same format",
        )
    if flags & ~(REFINES | NUMBERED) or rate > MAX_RATE:
        raise FrameError(f"flags {flags} and rate {rate}, allowed 0 to 3 and 0 to {MAX_RATE}")
    coarse = reader.take(1)[0] if flags & REFINES else None
    sequence = reader.varint(MAX_SEQUENCE) if flags & NUMBERED else None
    shapes = tuple(
        tuple(reader.varint(MAX_ELEMENTS) for _ in range(reader.count(MAX_DIMENSIONS)))
        for _ in range(reader.count(MAX_FEATURES))
    )
    length = reader.varint(MAX_PAYLOAD_BYTES)
    header = data[: reader.at]
    (checksum,) = _CHECKSUM.unpack(reader.take(_CHECKSUM.size))
    payload = bytes(data[reader.at :])
    if len(payload) != length:
        raise FrameError(f"a payload of {len(payload)} bytes, allowed the {length} that its header states")
    if google_crc32c.extend(google_crc32c.value(bytes(header)), payload) != checksum:
        raise FrameError("the checksum does not fit: bytes changed on the way", hint="send it again")
    frame = Frame(payload, shapes, rate, plan.hex(), codec.hex(), model.hex(), coarse, sequence)
    _check_sizes(frame)
    return frame


def check(frame: Frame, plan_digest: str, codec_digest: str, model_digest: str) -> None:
    """Raises MismatchError where the frame is for another plan, codec or model than these (whole digests)."""
    for what, got, allowed in (
        ("model", frame.model_digest, model_digest),
        ("codec", frame.codec_digest, codec_digest),
        ("plan", frame.plan_digest, plan_digest),
    ):
        if got != allowed[: len(got)]:
            raise MismatchError(
                f"a frame for {what} {got}, allowed {allowed[: len(got)]}", hint="give both ends the same bundle"
            )


def _header(frame: Frame) -> bytes:
    _check_sizes(frame)
    flags = (REFINES if frame.coarse is not None else 0) | (NUMBERED if frame.sequence is not None else 0)
    try:
        digests = (
            bytes.fromhex(frame.plan_digest)[:PLAN_BYTES],
            bytes.fromhex(frame.codec_digest)[:CODEC_BYTES],
            bytes.fromhex(frame.model_digest)[:MODEL_BYTES],
        )
    except ValueError as error:
        raise FrameError(f"a digest is not hexadecimal: {error}") from error
    if tuple(map(len, digests)) != (PLAN_BYTES, CODEC_BYTES, MODEL_BYTES):
        raise FrameError("a digest is too short, allowed 16 hexadecimal digits and more")
    parts = [_HEAD.pack(MAGIC, VERSION << 4 | flags, frame.rate, *digests)]
    if frame.coarse is not None:
        parts.append(bytes([frame.coarse]))
    if frame.sequence is not None:
        parts.append(_varint(frame.sequence))
    parts.append(bytes([len(frame.shapes)]))
    for shape in frame.shapes:
        parts += [bytes([len(shape)]), *(_varint(size) for size in shape)]
    parts.append(_varint(len(frame.payload)))
    return b"".join(parts)


def _check_sizes(frame: Frame) -> None:
    for what, got, limit in (
        ("rate", frame.rate, MAX_RATE),
        ("coarse rate", frame.coarse or 0, MAX_RATE),
        ("sequence number", frame.sequence or 0, MAX_SEQUENCE),
        ("number of features", len(frame.shapes), MAX_FEATURES),
        ("number of dimensions", max(map(len, frame.shapes), default=0), MAX_DIMENSIONS),
        ("number of elements", max(map(math.prod, frame.shapes), default=0), MAX_ELEMENTS),
        ("size", max((size for shape in frame.shapes for size in shape), default=0), MAX_ELEMENTS),
        ("payload of bytes", len(frame.payload), MAX_PAYLOAD_BYTES),
    ):
        if not 0 <= got <= limit:
            raise FrameError(f"a {what} of {got}, allowed 0 to {limit}")
    if any(size < 0 for shape in frame.shapes for size in shape):
        raise FrameError(f"shapes {frame.shapes}, allowed none below zero")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


class _Reader:
    """Takes bytes off the front; FrameError where there are too few."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise FrameError(f"a frame of {len(self.data)} bytes ends too soon", hint="send it again")
        self.at += count
        return part

    def count(self, limit: int) -> int:
        value = self.take(1)[0]
        if value > limit:
            raise FrameError(f"{value} features or dimensions, allowed {limit}")
        return value

    def varint(self, limit: int) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if (byte == 0 and shift) or value > limit:
                    raise FrameError(f"a size of {value}, allowed {limit}, in its shortest form")
                return value
        raise FrameError("a size of more than 5 bytes")
