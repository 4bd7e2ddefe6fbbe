"""A range coder of 24 bits of precision, 64 bits of state and words of 32: constriction's where it is installed.

constriction has no wheels for Linux on aarch64, so that a Raspberry Pi or a Jetson would need a Rust compiler. There
the plain coder below takes over: the same intervals in Python integers, hence the same bytes, about a third of a
microsecond a symbol on a desktop core. (G. N. N. Martin, 1979; the library: R. Bamler, arXiv:2201.01741.)

constriction's models are made from floats, so its weights are chosen such that every float operation is exact: with
weights g_i (sum 2^24, each >= 1) it is given the floats g_i - 1, whose sum is 2^24 - n. It scales them by
(2^24 - n) / sum, which is exactly 1, and adds one to each: g_i again, whatever the processor.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

try:
    import constriction
except ImportError:
    constriction = None

PRECISION = 24
_WORD = 0xFFFFFFFF


class PlainModel:
    """Symbols 0 .. n - 1 with integer `weights` [n], each >= 1, sum 2^24."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights.astype(np.int64)
        self.starts = np.cumsum(self.weights) - self.weights
        self.start_list, self.weight_list = self.starts.tolist(), self.weights.tolist()


class PlainEncoder:
    """`interval` ends it: all that was encoded lies in [low, low + width), a fraction of 2^(8 size)."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._weights: list[int] = []

    def encode(self, indices: np.ndarray, model: PlainModel) -> None:
        self._starts += model.starts[indices].tolist()
        self._weights += model.weights[indices].tolist()

    def interval(self) -> tuple[int, int, int]:
        low, width, words = 0, (1 << 64) - 1, []
        for start, weight in zip(self._starts, self._weights, strict=True):
            unit = width >> PRECISION
            low += unit * start
            width = unit * weight
            if width <= _WORD:
                words.append(low >> 32)  # with a carry, where it has 33 bits
                low = (low & _WORD) << 32
                width <<= 32
        digits, carry = bytearray(), low >> 64
        for word in reversed(words):
            word += carry
            carry = word >> 32
            digits += (word & _WORD).to_bytes(4, "little")
        digits.reverse()
        whole = int.from_bytes(digits, "big") << 64 | (low & (1 << 64) - 1)
        return whole, width, len(digits) + 8


class PlainDecoder:
    """Reads words, most significant first; zeros follow the last."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = [*words.tolist(), 0, 0]
        self._at = 2
        self._width = (1 << 64) - 1
        self._point = self._words[0] << 32 | self._words[1]  # above the interval's lower end

    def decode(self, model: PlainModel, count: int) -> np.ndarray:
        """int32 [count]. Raises ValueError where no encoder can have written the words."""
        words, at, width, point = self._words, self._at, self._width, self._point
        starts, weights = model.start_list, model.weight_list
        found = []
        for _ in range(count):
            unit = width >> PRECISION
            quantile = point // unit
            if quantile >> PRECISION:
                raise ValueError("a point outside of every symbol")
            index = bisect_right(starts, quantile) - 1
            found.append(index)
            point -= unit * starts[index]
            width = unit * weights[index]
            if width <= _WORD:
                width <<= 32
                point = point << 32 | (words[at] if at < len(words) else 0)
                at += 1
        self._at, self._width, self._point = at, width, point
        return np.array(found, np.int32)


class _FastEncoder:
    """constriction's, with the interval that it holds."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self.encode = self._coder.encode

    def interval(self) -> tuple[int, int, int]:
        words = self._coder.get_compressed()
        lower, width = self._coder.pos()[1]
        if len(words) == 0:
            return 0, width, 8
        # It seals with the first whole word at or past `lower`, and a word of zeros where that is not enough.
        point = (lower + _WORD) >> 32 << 32
        sealed = 2 if (lower + width) >> 32 == point >> 32 else 1
        scale = 32 * (2 - sealed)  # from its last word to the state's lowest bit
        whole = int.from_bytes(words.astype(">u4").tobytes(), "big") << scale
        return whole - (point - lower), width, 4 * len(words) + scale // 8


def _fast_model(weights: np.ndarray) -> Any:
    floats = (weights.astype(np.int64) - 1).astype(np.float32)
    return constriction.stream.model.Categorical(floats, perfect=False, lazy=False)


def _fast_decoder(words: np.ndarray) -> Any:
    return constriction.stream.queue.RangeDecoder(words)


exact_model: Any = _fast_model if constriction is not None else PlainModel
new_encoder: Any = _FastEncoder if constriction is not None else PlainEncoder
_new_decoder: Any = _fast_decoder if constriction is not None else PlainDecoder


def open_decoder(payload: bytes) -> Any:
    """A decoder of what `ending` gave."""
    return _new_decoder(np.frombuffer(payload + bytes(8 + -len(payload) % 4), ">u4").astype(np.uint32))


def ending(encoder: Any) -> bytes:
    """The shortest bytes whose continuation by zeros lies in the encoder's interval; of those the smallest.

    A coder that ends in whole words takes 4 to 8 bytes more than it must; this takes less than one on average.
    """
    low, width, size = encoder.interval()
    # No multiple of 2^128 is farther than one from the next in an interval of at most 2^128: more zeros are stripped.
    for zeros in range(16, -1, -1):
        candidate = -(-low >> 8 * zeros) << 8 * zeros
        if candidate < low + width:
            found: bytes = candidate.to_bytes(size, "big").rstrip(b"\0")
            return found
    raise AssertionError("an interval holds its own lower end")
