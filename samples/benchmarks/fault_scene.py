"""The faults: what is done to the edge and to the link, again and again, while requests come."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_processes import Edge, LinkProcess

# Waits so many seconds; True where the phase has ended meanwhile.
Rest = Callable[[float], bool]
Fault = Callable[[Rest], None]


@dataclass
class Scene:
    edge: Edge
    link: LinkProcess
    other: Path
    steady_link: str

    def steady(self, rest: Rest) -> None:
        rest(0.5)

    def killed(self, rest: Rest) -> None:
        self.edge.stop(signal.SIGKILL)
        rest(0.7)
        self.edge.start()
        rest(1.5)

    def restarted(self, rest: Rest) -> None:
        self.edge.stop(signal.SIGTERM)
        self.edge.start()
        rest(1.5)

    def paused(self, rest: Rest) -> None:
        self.edge.send(signal.SIGSTOP)
        rest(1.0)
        self.edge.send(signal.SIGCONT)
        rest(1.5)

    def link_cut(self, rest: Rest) -> None:
        self.link.tell("cut close")
        rest(0.7)
        self.link.tell("restore")
        rest(1.0)
        self.link.tell("cut")  # a hole: connections stay and nothing moves
        rest(0.7)
        self.link.tell("restore")
        rest(1.0)

    def slowed(self, rest: Rest) -> None:
        self.link.tell("set 1kbps,4ms")
        rest(1.5)
        self.link.tell(f"set {self.steady_link}")
        rest(1.5)

    def damaged(self, rest: Rest) -> None:
        self.link.tell("flip up")
        rest(0.3)
        self.link.tell("flip down")
        rest(0.3)

    def skewed(self, rest: Rest) -> None:
        self.edge.start(self.other)
        rest(1.5)
        self.edge.start()
        rest(1.5)

    @property
    def phases(self) -> dict[str, Fault]:
        return {
            "steady": self.steady,
            "killed": self.killed,
            "restarted": self.restarted,
            "paused": self.paused,
            "link cut": self.link_cut,
            "1 kbit/s": self.slowed,
            "bytes flipped": self.damaged,
            "version skewed": self.skewed,
        }


@contextmanager
def trouble(fault: Fault, count: Callable[[], None]) -> Iterator[None]:
    """The fault, over and over, until the block ends; whole rounds, so that the next phase finds things in order.
    `count` is called before each."""
    done = threading.Event()
    failures: list[BaseException] = []

    def stir() -> None:
        try:
            while not done.is_set():
                count()
                fault(done.wait)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=stir)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
