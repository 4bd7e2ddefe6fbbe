from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DeadlineError, InputError
from edgekit.runtimes.preprocess import MAX_PIXELS
from edgekit.runtimes.server.decoding import DecodePool, MediaOptions
from edgekit.runtimes.server.schedule import LateError, QueueFullError

from .pictures import CONFIG, KINDS, SIDE, encoded, photo


def test_the_rows_of_a_batch_are_the_tensors_of_single_pictures(tmp_path: Path) -> None:
    from edgekit.runtimes.preprocess import image_tensor

    items, pool = list(KINDS.values()), DecodePool(MediaOptions(threads=4))
    for layout in ("NCHW", "NHWC"):
        config = CONFIG.model_copy(update={"layout": layout})
        shape = (3, SIDE, SIDE) if layout == "NCHW" else (SIDE, SIDE, 3)
        batch = np.empty((len(items), *shape), np.float32)
        pool.fill(batch, items, config)
        for row, item in zip(batch, items, strict=True):
            (tmp_path / "one").write_bytes(item)
            np.testing.assert_array_equal(row, image_tensor(tmp_path / "one", config)[0])
    pool.close()


def test_changed_bytes_are_a_picture_or_an_input_error() -> None:
    generator, pool = np.random.default_rng(0), DecodePool()
    batch, refused = np.empty((1, 3, SIDE, SIDE), np.float32), 0
    for name in ("jpeg", "png", "webp", "animated gif", "bmp", "16 bits"):
        for _ in range(40):
            changed = bytearray(KINDS[name])
            for place in generator.integers(0, len(changed), 3):
                changed[place] ^= int(generator.integers(1, 256))
            try:
                pool.fill(batch, [bytes(changed)], CONFIG)
            except InputError as error:
                assert error.message.startswith("image 0")
                refused += 1
            else:
                assert np.isfinite(batch).all()
    pool.close()
    assert refused


def test_no_more_pixels_are_decoded_at_once_than_allowed() -> None:
    item, side = encoded(photo(200, 200), "PNG"), 200 * 200
    for allowed, most in ((3 * side, 3), (side // 2, 1)):
        pool = DecodePool(MediaOptions(threads=8, pixels_at_once=allowed))
        batch = np.empty((16, 3, SIDE, SIDE), np.float32)
        callers = [
            threading.Thread(target=pool.fill, args=(batch[at : at + 4], [item] * 4, CONFIG)) for at in (0, 4, 8, 12)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        pool.close()
        assert side <= pool.peak_pixels <= most * side
        assert (batch == batch[0]).all()


def test_a_draft_of_a_large_picture_is_close_and_of_a_small_one_the_same() -> None:
    large, small = encoded(photo(1600, 1200), "JPEG", quality=90), encoded(photo(90, 80), "JPEG")
    filled = []
    for draft in (False, True):
        pool, batch = DecodePool(MediaOptions(draft=draft)), np.empty((2, 3, SIDE, SIDE), np.float32)
        pool.fill(batch, [large, small], CONFIG)
        pool.close()
        filled.append(batch)
    assert not np.array_equal(filled[0][0], filled[1][0])
    # In levels of 255; quality 90 rounds the frequencies of the file itself in steps of 3 and more.
    assert 57 * np.sqrt(np.mean((filled[0][0] - filled[1][0]) ** 2)) < 3
    np.testing.assert_array_equal(filled[0][1], filled[1][1])


def test_a_node_may_allow_fewer_pixels_than_run(tmp_path: Path) -> None:
    pool = DecodePool(MediaOptions(max_pixels=1000))
    with pytest.raises(InputError, match="allowed 1,000"):
        pool.fill(np.empty((1, 3, SIDE, SIDE), np.float32), [KINDS["jpeg"]], CONFIG)
    pool.close()
    assert MediaOptions().max_pixels < MAX_PIXELS


class Held:
    """A pool whose threads are all busy until it is let go."""

    def __init__(self, options: MediaOptions) -> None:
        self.pool = DecodePool(options)
        self._open = threading.Event()
        for _ in range(options.threads):
            self.pool._pool.submit(self._open.wait)

    def let_go(self) -> None:
        self._open.set()
        self.pool.close()


def row() -> np.ndarray:
    return np.empty((1, 3, SIDE, SIDE), np.float32)


def test_a_full_line_refuses_at_once() -> None:
    held, batch = Held(MediaOptions(threads=1, queue=2)), np.empty((2, 3, SIDE, SIDE), np.float32)
    first = threading.Thread(target=held.pool.fill, args=(batch, [KINDS["png"]] * 2, CONFIG))
    first.start()
    while held.pool._waiting < 2:
        time.sleep(0.001)
    with pytest.raises(QueueFullError, match="2 wait, allowed 2"):
        held.pool.fill(row(), [KINDS["png"]], CONFIG)
    held.let_go()
    first.join()
    assert held.pool._waiting == 0


def test_who_would_be_late_is_refused_at_once_and_who_is_late_is_told() -> None:
    held = Held(MediaOptions(threads=1))
    with pytest.raises(DeadlineError, match="image 0 was not decoded"):
        held.pool.fill(row(), [KINDS["png"]], CONFIG, time.monotonic() + 0.02)
    assert held.pool._waiting == 0
    first = threading.Thread(target=held.pool.fill, args=(row(), [KINDS["png"]], CONFIG))
    first.start()
    while not held.pool._waiting:
        time.sleep(0.001)
    held.pool._picture_s = 10.0
    with pytest.raises(LateError, match="decoded in 20000 ms"):
        held.pool.fill(row(), [KINDS["png"]], CONFIG, time.monotonic() + 15.0)
    held.let_go()
    first.join()
