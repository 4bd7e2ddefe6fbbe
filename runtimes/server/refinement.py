"""Coarse payloads that are kept for a while, so that a finer rate can come as what is missing.

A caller that means to refine numbers its frame and names itself (`edgekit_sender`); the finer frame bears the same
number and says which rate it refines. What is kept is bounded in number and bytes, the oldest leaves first: a caller
whose coarse frame has left is told so, and sends the finer one whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from edgekit.errors import CodecError, MismatchError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.frame import Frame

MAX_KEPT, MAX_BYTES = 1024, 16 << 20

Key = tuple[str, int, str, int]


class CoarseFrames:
    """Safe to use from several threads."""

    def __init__(self, max_kept: int = MAX_KEPT, max_bytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[Key, Frame] = OrderedDict()
        self._bytes, self._max_kept, self._max_bytes = 0, max_kept, max_bytes
        self._lock = threading.Lock()

    def keep(self, sender: str, frame: Frame) -> None:
        """Only what has a sender and a number can be refined."""
        if not sender or frame.sequence is None or len(frame.payload) > self._max_bytes:
            return
        key = (sender, frame.sequence, frame.codec_digest, frame.rate)
        with self._lock:
            self._drop(key)
            self._kept[key] = frame
            self._bytes += len(frame.payload)
            while len(self._kept) > self._max_kept or self._bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def decode(self, codec: Codec, sender: str, frame: Frame) -> list[np.ndarray]:
        """The arrays of the finer rate. Raises MismatchError where the coarse frame is not here, CodecError where this
        codec does not refine or the payload is damaged."""
        # Only a node that is asked to refine pays for what refining needs.
        from edgekit.runtimes.codecs.refinement import decode_refinement
        from edgekit.runtimes.codecs.transform import TransformCodec

        if not isinstance(codec, TransformCodec):
            raise CodecError("frames of this codec are not refined", hint="send the frame of the finer rate whole")
        assert frame.coarse is not None
        with self._lock:
            coarse = self._kept.get((sender, frame.sequence or 0, frame.codec_digest, frame.coarse))
        if coarse is None or coarse.shapes != frame.shapes:
            raise MismatchError(
                f"the frame of rate {frame.coarse} that this one refines is not here any more",
                hint="send the frame of the finer rate whole",
            )
        return decode_refinement(codec, coarse.payload, frame.payload, frame.shapes, frame.coarse, frame.rate)

    def _drop(self, key: Key) -> None:
        frame = self._kept.pop(key, None)
        if frame is not None:
            self._bytes -= len(frame.payload)
