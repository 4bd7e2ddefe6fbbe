"""Closes a window every minute, and before another bundle counts: what the node and the applications saw, and how the
device is. A node tells sums alone, which are those of the bundle that counts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import OutputError
from edgekit.fleet.agent.health import read_health
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.node_seen import NodeSeen
from edgekit.fleet.agent.ring import Ring
from edgekit.fleet.agent.spool import read_spool
from edgekit.fleet.agent.tally import Tally
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.protocol.windows import Health, Window

logger = logging.getLogger("edgekit")

MAX_WINDOW_S = 86_400.0


class Collector:
    """`node`: where a node of this agent answers, None without one. `window_s` 0: nothing is collected."""

    def __init__(
        self,
        home: Home,
        updater: Updater,
        ring: Ring,
        node: str | None,
        window_s: float = 60.0,
        health: Callable[[Path], Health] = read_health,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._home, self._updater, self._ring = home, updater, ring
        self._node = None if node is None else NodeSeen(node)
        self._window_s, self._health, self._now, self._wall = window_s, health, now, wall
        self._since = now()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._window_s > 0 and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="edgekit-windows", daemon=True)
            self._thread.start()
            self._updater.turning = self.collect

    def _run(self) -> None:
        while not self._stopped.wait(self._window_s):
            self.collect()

    def collect(self) -> list[Window]:
        """The windows that end now, one for each bundle that was used, on the disk and numbered. A device that does
        nothing tells how it is. Never raises: what cannot be written is lost, and logged. Safe from any thread."""
        with self._lock:
            return self._collect()

    def _collect(self) -> list[Window]:
        now = self._now()
        seconds, self._since = min(MAX_WINDOW_S, max(1e-3, now - self._since)), now
        tallies, files = read_spool(self._home.spool, self._ring.consumed)
        active = self._updater.state.active
        if active is not None:
            mine = tallies.setdefault(active, Tally())
            if self._node is not None:
                mine.add(self._node.read())
        health = self._health(self._home.path)
        names = [path.name for path in files]
        self._ring.consumed.intersection_update(names)
        written = []
        answers = sum(tally.answered for tally in tallies.values())
        for digest, tally in tallies.items():
            try:
                window = self._window(digest, tally, seconds, health, tally.answered / max(1, answers))
                written.append(self._ring.append(window, names))
            except (OutputError, ValidationError) as error:
                logger.warning("a window of %s is lost: %s", digest[:16], error)
        self._let_go(files)
        return written

    def _window(self, digest: str, tally: Tally, seconds: float, health: Health, share: float) -> Window:
        """`share`: of all answers, and so of the energy, which is read of the whole board."""
        energy_mj = None if health.power_w is None else 1e3 * health.power_w * seconds * share
        return Window.model_validate(
            {
                "sequence": 0,  # the ring's to give
                "started_at": max(0.0, self._wall() - seconds),
                "seconds": seconds,
                "digest": digest,
                "energy_mj": energy_mj if tally.answered else None,
                "health": health,
                **tally.to_window(),
            }
        )

    def _let_go(self, files: list[Path]) -> None:
        """Of what is in a window; what stays because of a cut or a disk is known by its name, and not counted twice."""
        for path in files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s stays: %s", path, error.strerror)

    def close(self) -> None:
        """The last window is what ends now."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None
            self.collect()
