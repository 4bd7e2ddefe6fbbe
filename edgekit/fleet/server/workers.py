"""Several processes that serve one socket: started, watched, started again, stopped together."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from types import FrameType

from edgekit.errors import EdgekitError

logger = logging.getLogger("edgekit")

STOP_S = 15.0  # then what still runs is killed
SHORT_LIFE_S = 5.0  # a worker that lived no longer waits before it starts again, ever longer
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 10.0


class Workers:
    """`work` runs in each of `count` processes, which are copies of this one: it opens what it needs there, and returns
    at SIGTERM. `ended` hears of each that ended by itself. Nothing may be open here that a copy cannot share, and no
    thread run."""

    def __init__(self, count: int, work: Callable[[], None], ended: Callable[[int], None]) -> None:
        self._work, self._ended = work, ended
        self._context = multiprocessing.get_context("fork")
        self._places: list[_Place] = [_Place() for _ in range(count)]
        self._stopping = False
        self._woken, self._wake = os.pipe()
        self._alive, self._life = os.pipe()  # its end tells the workers that this process is gone

    def run(self) -> None:
        """Until SIGTERM or SIGINT. In the main thread."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._stopping:
                now = time.monotonic()
                for place in self._places:
                    if place.process is None and now >= place.due_at:
                        place.begin(self._started(), now)
                self._wait(now)
                self._bury()
        finally:
            self._end_all()
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (self._woken, self._wake, self._alive, self._life):
                os.close(end)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        os.write(self._wake, b".")

    def _wait(self, now: float) -> None:
        due = [place.due_at for place in self._places if place.process is None]
        sentinels = [place.process.sentinel for place in self._places if place.process is not None]
        wait([self._woken, *sentinels], max(0.0, min(due) - now) if due else None)

    def _bury(self) -> None:
        for place in self._places:
            process = place.process
            if process is not None and not process.is_alive():
                code = process.exitcode
                if not self._stopping:
                    wait_s = place.end(time.monotonic())
                    logger.warning(
                        "worker %d ended with code %s; another one starts in %.1f s", process.pid, code, wait_s
                    )
                self._ended(process.pid or 0)
                place.process = None
                process.close()

    def _started(self) -> ForkProcess:
        process = self._context.Process(target=self._live)
        process.start()
        return process

    def _live(self) -> None:
        """In the worker."""
        os.close(self._life)
        leave_at(signal.SIGTERM, signal.SIGINT)
        threading.Thread(target=self._follow, daemon=True).start()
        try:
            self._work()
        except EdgekitError as error:
            logger.error("a worker cannot go on: %s", error)
            os._exit(1)

    def _follow(self) -> None:
        with suppress(OSError):
            os.read(self._alive, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _end_all(self) -> None:
        going = [place.process for place in self._places if place.process is not None]
        for process in going:
            process.terminate()
        ends_at = time.monotonic() + STOP_S
        for process in going:
            process.join(max(0.0, ends_at - time.monotonic()))
            if process.is_alive():
                logger.warning("worker %d did not stop, and is killed", process.pid)
                process.kill()
                process.join()
            process.close()


def leave_at(*numbers: int) -> None:
    """Ends this process in order, with what stands in `finally`. uvicorn answers these signals itself while it serves,
    and raises them once more when it is done."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in numbers:
        signal.signal(number, leave)


class _Place:
    """Of one worker after the other."""

    def __init__(self) -> None:
        self.process: ForkProcess | None = None
        self.due_at = 0.0
        self._began_at = 0.0
        self._short_lives = 0

    def begin(self, process: ForkProcess, now: float) -> None:
        self.process, self._began_at = process, now

    def end(self, now: float) -> float:
        """In how many seconds the next one is due."""
        self._short_lives = self._short_lives + 1 if now - self._began_at < SHORT_LIFE_S else 0
        wait_s = min(MOST_WAIT_S, FIRST_WAIT_S * 2 ** (self._short_lives - 1)) if self._short_lives else 0.0
        self.due_at = now + wait_s
        return wait_s
