"""How an application on a device answers with what its agent has proven: the bundle that counts, exchanged while it
runs, by the fleet's plan, and told of to the agent.

    with follow(Path("/var/lib/edgekit"), edge="grpcs://edge:8102") as session:
        answer = session.ask({"x": image}, deadline_ms=100)

Needs numpy and a runtime, and no network of its own: the daemon imports nothing of this.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgekit.errors import BundleError, DeadlineError, EdgekitError, SessionError
from edgekit.fleet.agent.comparison import Comparison, Reference
from edgekit.fleet.agent.orders import Orders, read_orders
from edgekit.fleet.agent.spool import SpoolRecorder
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.connect import SplitSession, connect
from edgekit.runtimes.coordinator.policies import Auto
from edgekit.runtimes.session import Feeds

logger = logging.getLogger("edgekit")

LOOK_S = 1.0
AGAIN_S = 30.0  # after a bundle that could not be opened


class Followed:
    """Safe from any thread. `compare`: opens the full model for a bundle; giving it is the owner's consent to ask that
    for the share of requests that the fleet wants compared. `settings`: of `edgekit.connect`.

    Raises BundleError where the agent has no bundle yet, and like `edgekit.connect`."""

    def __init__(
        self,
        home: Path,
        compare: Callable[[Path], Reference] | None = None,
        look_s: float = LOOK_S,
        choose: Callable[[], float] = random.random,
        **settings: Any,
    ) -> None:
        self._home, self._compare, self._look_s, self._settings = home, compare, look_s, settings
        self._choose = choose
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._opening: threading.Thread | None = None
        self._is_closed = False
        self._orders = read_orders(home)
        self._held = self._open(self._pointed())

    @property
    def digest(self) -> str:
        """Of the bundle that answers."""
        return self._held.digest

    def ask(self, feeds: Feeds, deadline_ms: float | None = None) -> Answer:
        """Raises like `SplitSession.ask`."""
        held = self._acquire()
        try:
            answer = held.ask(feeds, deadline_ms)
            if held.comparison is not None and self._choose() < self._orders.compare_share:
                held.comparison.offer(feeds, answer.outputs)
            return answer
        finally:
            self._release(held)

    def run(self, feeds: Feeds, deadline_ms: float | None = None) -> Mapping[str, np.ndarray]:
        return self.ask(feeds, deadline_ms).outputs

    def _acquire(self) -> _Held:
        now = time.monotonic()
        with self._lock:
            if self._is_closed:
                raise SessionError("this session is closed", hint="follow again")
            is_due = now - self._looked_at >= self._look_s and self._opening is None
            if is_due:
                self._looked_at = now
            held = self._held
            held.users += 1
        if is_due:
            self._look(held)
        return held

    def _look(self, held: _Held) -> None:
        orders = read_orders(self._home)
        if orders != self._orders:
            self._orders = orders
            held.suggest(orders)
        try:
            pointed = self._pointed()
        except BundleError:
            return  # the fleet wants nothing run; who asks all the same is answered as before
        if pointed.name != held.digest:
            with self._lock:
                self._opening = threading.Thread(target=self._exchange, args=(pointed,), daemon=True)
                self._opening.start()

    def _exchange(self, slot: Path) -> None:
        """Beside the requests, which go on being answered."""
        try:
            fresh = self._open(slot)
        except EdgekitError as error:
            logger.warning("%s is not followed: %s", slot.name[:16], error.message)
            with self._lock:
                self._opening, self._looked_at = None, time.monotonic() + AGAIN_S
            return
        with self._lock:
            before, self._held, self._opening = self._held, fresh, None
            before.is_retired = True
            is_unused = before.users == 0
            if self._is_closed:
                fresh.is_retired = True
        if is_unused:
            before.close()
        if fresh.is_retired and fresh.users == 0:
            fresh.close()

    def _release(self, held: _Held) -> None:
        with self._lock:
            held.users -= 1
            is_last = held.is_retired and held.users == 0
        if is_last:
            held.close()

    def _pointed(self) -> Path:
        """The slot itself: where `current` leads later moves nothing that is open."""
        current = self._home / "current"
        if not current.exists():
            raise BundleError(
                f"{current} leads to no bundle yet", hint="edgekit agent status tells what the agent does"
            )
        return current.resolve()

    def _open(self, slot: Path) -> _Held:
        held = _Held(slot, connect(slot, **self._settings), SpoolRecorder(self._home, slot.name))
        held.suggest(self._orders)
        if self._compare is not None:
            manifest = held.session.coordinator.manifest
            held.comparison = Comparison(partial(self._compare, slot), manifest, held.recorder)
        return held

    def close(self) -> None:
        """Requests under way end as they would. Again is harmless."""
        with self._lock:
            self._is_closed, self._held.is_retired = True, True
            opening, held = self._opening, self._held
            is_unused = held.users == 0
        if opening is not None:
            opening.join()
        if is_unused:
            held.close()

    def __enter__(self) -> Followed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Held:
    """A bundle that is open, and who uses it."""

    def __init__(self, slot: Path, session: SplitSession, recorder: SpoolRecorder) -> None:
        self.digest, self.session, self.recorder = slot.name, session, recorder
        self.comparison: Comparison | None = None
        self.users, self.is_retired = 0, False

    def ask(self, feeds: Feeds, deadline_ms: float | None) -> Answer:
        try:
            answer = self.session.ask(feeds, deadline_ms)
        except EdgekitError as error:
            self.recorder.failed(late=isinstance(error, DeadlineError))
            raise
        self.recorder.answered(
            answer.total_ms,
            answer.variant,
            degraded=answer.degraded,
            late=answer.late_ms > 0,
            confidence=answer.confidence,
            input_means=[float(np.mean(value)) for value in feeds.values() if value.size and value.dtype.kind in "fiu"],
        )
        if answer.bytes_sent:
            for (near, far), link in self.session.coordinator.links.items():
                if near == "device" and far == answer.tier:
                    self.recorder.linked(link.bandwidth_mbps, link.rtt_ms, link.loss)
        return answer

    def suggest(self, orders: Orders) -> None:
        """The fleet's plan is where the coordinator starts from; it goes on planning by what it measures."""
        policy = self.session.coordinator.policy
        if orders.variant and orders.digest == self.digest and isinstance(policy, Auto):
            policy.suggest(orders.variant, orders.rate)

    def close(self) -> None:
        if self.comparison is not None:
            self.comparison.close()
        self.session.close()
        self.recorder.close()


def follow(home: Path, compare: Callable[[Path], Reference] | None = None, **settings: Any) -> Followed:
    """What the agent of `home` answers with, now and later. See `Followed`."""
    return Followed(home, compare, **settings)
