"""Where pictures of requests are decoded: a few threads, a bounded line before them, bounded pixels in them.

Decoding and resizing let go of the interpreter, so that they overlap with the batches that run meanwhile. A small file
can hold a very large picture: the pixels that its header states are counted before they are decoded.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.manifest import Preprocess
from edgekit.errors import DataError, DeadlineError, InputError
from edgekit.runtimes.preprocess import DecodeOptions, decode_image, normalize_into, resize_and_crop
from edgekit.runtimes.server.schedule import LateError, QueueFullError

# Those of Pillow's that pictures on a network come in; others (EPS starts Ghostscript) are no business of strangers.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Three times the size that is resized to: on 16 photographs of 2,400 pixels the result then differs by 0.7 levels of
# 255 (root mean square; 1.7 on the worst of them) and takes 26 ms instead of 58; with twice the size by 2.1 (8.3).
DRAFT_GAP = 3
RECENT = 0.1  # the weight of the last picture in the expected time of the next


@dataclass(frozen=True)
class MediaOptions:
    """`threads` decode, `queue` pictures may wait for them; no picture has more than `max_pixels`, and all that are
    decoded at one time no more than `pixels_at_once`: up to 16 bytes for each where there is transparency. `draft`:
    JPEGs are decoded at down to three times the size that they are resized to: faster, and no longer to the bit what
    `edgekit run` says."""

    threads: int = 2
    queue: int = 256
    max_pixels: int = 32_000_000
    pixels_at_once: int = 32_000_000
    draft: bool = False


class DecodePool:
    """Shared by the models of a node. Safe to use from many threads."""

    def __init__(self, options: MediaOptions = MediaOptions()) -> None:
        self.options = options
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="edgekit-decode")
        self._room = threading.Condition()
        self._pixels = self._waiting = 0
        self._picture_s = 0.0
        self.peak_pixels = self.decoded = 0

    def fill(self, batch: np.ndarray, items: Sequence[bytes], config: Preprocess, deadline: float = math.inf) -> None:
        """Row i of `batch`, float32 [n, C, H, W] or [n, H, W, C], from `items[i]`. `deadline` on `time.monotonic`'s
        clock.

        Raises InputError, naming the first picture that is none; at once QueueFullError and LateError; DeadlineError.
        """
        self._enter(len(items), deadline)
        rows = [self._pool.submit(self._one, batch[index], item, config) for index, item in enumerate(items)]
        try:
            for index, row in enumerate(rows):
                self._wait(index, row, deadline)
        finally:
            # One bad picture spoils the request: what has not begun need not.
            cancelled = sum(row.cancel() for row in rows)
            with self._room:
                self._waiting -= cancelled

    def _enter(self, count: int, deadline: float) -> None:
        options = self.options
        with self._room:
            expected_s = (self._waiting + count) * self._picture_s / options.threads
            if self._waiting and self._waiting + count > options.queue:
                raise QueueFullError(
                    f"the line of pictures to decode is full: {self._waiting} wait, allowed {options.queue}",
                    self._waiting * self._picture_s / options.threads,
                    "give the node more --decode-threads",
                )
            left_s = deadline - time.monotonic()
            if self._waiting and expected_s > left_s:
                raise LateError(
                    f"the pictures would be decoded in {1e3 * expected_s:.0f} ms, the deadline is in "
                    f"{1e3 * left_s:.0f} ms",
                    self._waiting * self._picture_s / options.threads,
                    "give it more time",
                )
            self._waiting += count

    def _wait(self, index: int, row: Future[None], deadline: float) -> None:
        try:
            row.result(None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()))
        except DataError as error:
            raise InputError(f"image {index}: {error.message}", hint=error.hint) from error
        except FutureTimeoutError as error:
            raise DeadlineError(f"image {index} was not decoded by the deadline") from error

    def _one(self, row: np.ndarray, item: bytes, config: Preprocess) -> None:
        held: list[int] = []

        def admit(pixels: int) -> None:
            self._hold(pixels)
            held.append(pixels)

        draft = DRAFT_GAP * config.resize if self.options.draft else None
        start = time.perf_counter()
        try:
            _prepare(row, item, config, DecodeOptions(self.options.max_pixels, FORMATS, admit, draft))
        finally:
            taken = time.perf_counter() - start
            with self._room:
                self._pixels -= sum(held)
                self._waiting -= 1
                self.decoded += 1
                self._picture_s += (RECENT if self._picture_s else 1.0) * (taken - self._picture_s)
                self._room.notify_all()

    def _hold(self, pixels: int) -> None:
        """Waits until there is room for them; one picture always has it."""
        with self._room:
            self._room.wait_for(lambda: not self._pixels or self._pixels + pixels <= self.options.pixels_at_once)
            self._pixels += pixels
            self.peak_pixels = max(self.peak_pixels, self._pixels)

    def close(self) -> None:
        self._pool.shutdown()


def _prepare(row: np.ndarray, item: bytes, config: Preprocess, options: DecodeOptions) -> None:
    """A function of its own: when it is over nothing holds the large picture any more."""
    image = decode_image(item, config.mode, options)
    normalize_into(row, np.asarray(resize_and_crop(image, config)), config)
