from __future__ import annotations

import dataclasses

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import FrameError, MismatchError
from edgekit.runtimes.codecs.frame import MAX_SEQUENCE, Frame, check, frame_size, pack, unpack

PLAN, CODEC, MODEL = "0123456789abcdef" * 4, "ab" * 32, "cd" * 32
FRAME = Frame(b"payload" * 30, ((1, 192, 7, 7),), 3, PLAN, CODEC, MODEL)


def shortened(frame: Frame) -> Frame:
    return dataclasses.replace(
        frame,
        plan_digest=frame.plan_digest[:16],
        codec_digest=frame.codec_digest[:8],
        model_digest=frame.model_digest[:8],
    )


frames = st.builds(
    Frame,
    payload=st.binary(max_size=300),
    shapes=st.lists(st.lists(st.integers(0, 300), max_size=3).map(tuple), max_size=4).map(tuple),
    rate=st.integers(0, 254),
    plan_digest=st.just(PLAN),
    codec_digest=st.just(CODEC),
    model_digest=st.just(MODEL),
    coarse=st.none() | st.integers(0, 254),
    sequence=st.none() | st.integers(0, MAX_SEQUENCE),
)


@given(frame=frames)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_frames_come_back_with_their_digests_shortened(frame: Frame) -> None:
    data = pack(frame)
    assert unpack(data) == shortened(frame)
    if frame.coarse is None and frame.sequence is None:
        assert frame_size(len(frame.payload), frame.shapes) == len(data)


def test_one_feature_of_four_dimensions_costs_33_bytes() -> None:
    assert len(pack(FRAME)) - len(FRAME.payload) == 33


def test_the_bytes_are_what_they_were() -> None:
    """The wire format: a change of it needs another version."""
    frame = Frame(b"xyz", ((1, 300),), 2, PLAN, CODEC, MODEL, coarse=5, sequence=200)
    head = "454b13020123456789abcdefababababcdcdcdcd05c801010201ac0203"
    checksum = google_crc32c.value(bytes.fromhex(head) + b"xyz").to_bytes(4, "little")
    assert pack(frame) == bytes.fromhex(head) + checksum + b"xyz"


def test_the_checksum_is_the_compiled_castagnoli_one() -> None:
    assert google_crc32c.implementation == "c", "the Python fallback takes milliseconds a frame"
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_every_flipped_bit_is_found() -> None:
    data = pack(FRAME)
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(FrameError):
            unpack(bytes(changed))


def test_truncated_and_extended_frames_are_refused() -> None:
    data = pack(FRAME)
    for end in range(len(data)):
        with pytest.raises(FrameError):
            unpack(data[:end])
    with pytest.raises(FrameError):
        unpack(data + b"\0")


@given(data=st.binary(max_size=100))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for hostile in (data, pack(FRAME)[:4] + data, pack(FRAME)[:20] + data):
        with pytest.raises(FrameError):
            unpack(hostile)


def test_longer_forms_of_a_size_are_refused() -> None:
    """The size 0 as two bytes, with a checksum that fits."""
    head = pack(Frame(b"", (), 0, PLAN, CODEC, MODEL))[:20] + b"\x00\x80\x00"
    with pytest.raises(FrameError, match="shortest"):
        unpack(head + google_crc32c.value(head).to_bytes(4, "little"))


def test_shapes_of_too_many_elements_are_refused() -> None:
    head = pack(Frame(b"", (), 0, PLAN, CODEC, MODEL))[:20] + b"\x01\x02\x80\x80\x40\x80\x80\x40\x00"
    with pytest.raises(FrameError, match="elements"):
        unpack(head + google_crc32c.value(head).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 255},
        {"rate": -1},
        {"coarse": 300},
        {"sequence": MAX_SEQUENCE + 1},
        {"sequence": -1},
        {"plan_digest": "00"},
        {"codec_digest": "not hexadecimal"},
        {"shapes": ((1,),) * 17},
        {"shapes": ((1,) * 9,)},
        {"shapes": ((-1, 4),)},
        {"shapes": ((1 << 20, 1 << 20),)},
    ],
)
def test_what_a_frame_cannot_hold_is_not_packed(change: dict) -> None:
    with pytest.raises(FrameError):
        pack(dataclasses.replace(FRAME, **change))


def test_a_frame_for_this_bundle_passes() -> None:
    check(unpack(pack(FRAME)), PLAN, CODEC, MODEL)


@pytest.mark.parametrize(("what", "got"), [("plan", PLAN[:16]), ("codec", CODEC[:8]), ("model", MODEL[:8])])
def test_a_frame_for_another_bundle_names_what_differs(what: str, got: str) -> None:
    allowed = {"plan_digest": PLAN, "codec_digest": CODEC, "model_digest": MODEL, f"{what}_digest": "77" * 32}
    with pytest.raises(MismatchError, match=f"{what} {got}, allowed 7777"):
        check(unpack(pack(FRAME)), **allowed)
