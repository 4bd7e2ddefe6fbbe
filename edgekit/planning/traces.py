"""A Trace: what a link is like from moment to moment, as pieces on each of which nothing changes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from edgekit.errors import DataError
from edgekit.planning.link import Link

BYTES_PER_MBIT = 125_000.0


@dataclass(frozen=True)
class Conditions:
    """One moment of a link. `jitter_ms`: a one-way delay varies by so much to either side. Down: nothing moves.

    Raises DataError for what no link can be.
    """

    bandwidth_mbps: float
    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    up: bool = True

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.bandwidth_mbps, self.rtt_ms, self.jitter_ms)))
        if not (finite and self.bandwidth_mbps > 0 and self.rtt_ms >= 0 and self.jitter_ms >= 0 and 0 <= self.loss < 1):
            raise DataError(
                f"a link of {self.bandwidth_mbps} Mbit/s, {self.rtt_ms} ms, jitter {self.jitter_ms} ms and loss "
                f"{self.loss}, allowed bandwidth above 0, times from 0, loss from 0 to below 1",
                hint="up = 0 states an outage",
            )

    @classmethod
    def of(cls, link: Link) -> Conditions:
        return cls(link.bandwidth_mbps, link.rtt_ms, 0.0, link.loss)

    def link(self) -> Link:
        """What the planner reads; jitter has no place there."""
        return Link(self.bandwidth_mbps, self.rtt_ms, self.loss)

    @property
    def bytes_per_s(self) -> float:
        """Of useful bytes: what is lost is sent once more, as in `Link.one_way_ms`."""
        return self.bandwidth_mbps * (1 - self.loss) * BYTES_PER_MBIT if self.up else 0.0


@dataclass(frozen=True)
class Trace:
    """`pieces[i]` holds from `time_s[i]` to `time_s[i + 1]`, the last one to `duration_s`.

    After its end a trace that `loops` begins again; another stays at its last piece. Times start at 0 and increase
    (DataError).
    """

    name: str
    time_s: tuple[float, ...]
    pieces: tuple[Conditions, ...]
    duration_s: float
    loops: bool = False

    def __post_init__(self) -> None:
        if len(self.time_s) != len(self.pieces) or not self.pieces:
            raise DataError(f"trace {self.name!r} has {len(self.time_s)} times for {len(self.pieces)} pieces")
        ends = (*self.time_s[1:], self.duration_s)
        rises = all(start < end for start, end in zip(self.time_s, ends, strict=True))
        if self.time_s[0] != 0 or not rises or not math.isfinite(self.duration_s):
            raise DataError(f"the times of trace {self.name!r} must start at 0 and increase up to {self.duration_s} s")

    @classmethod
    def constant(cls, conditions: Conditions, name: str = "constant") -> Trace:
        return cls(name, (0.0,), (conditions,), 1.0)

    @cached_property
    def _sent(self) -> tuple[float, ...]:
        """Bytes that the pieces before each one can carry, and last what all of them can."""
        sums = [0.0]
        for start, end, piece in zip(self.time_s, (*self.time_s[1:], self.duration_s), self.pieces, strict=True):
            sums.append(sums[-1] + piece.bytes_per_s * (end - start))
        return tuple(sums)

    def _inside(self, t: float) -> tuple[float, float]:
        """(rounds gone by in seconds, time within the round)."""
        if not self.loops or t < self.duration_s:
            return 0.0, max(t, 0.0)
        rounds = math.floor(t / self.duration_s) * self.duration_s
        return rounds, max(t - rounds, 0.0)

    def _index(self, inside: float) -> int:
        return bisect_right(self.time_s, inside) - 1

    def at(self, t: float) -> Conditions:
        return self.pieces[self._index(self._inside(t)[1])]

    def capacity_bytes(self, start_s: float, end_s: float) -> float:
        """What can leave the sender between the two times."""
        return max(0.0, self._carried(end_s) - self._carried(start_s))

    def _carried(self, t: float) -> float:
        rounds, inside = self._inside(t)
        index = self._index(inside)
        whole = self._sent[-1] * round(rounds / self.duration_s)
        return whole + self._sent[index] + self.pieces[index].bytes_per_s * (inside - self.time_s[index])

    def transfer_end(self, start_s: float, size_bytes: float) -> float:
        """When the last of `size_bytes` leaves a sender that begins at `start_s`: exact over the pieces, nothing moves
        while the link is down. Infinite where it never comes up again."""
        if size_bytes <= 0:
            return start_s
        target = self._carried(start_s) + size_bytes
        rounds_s = 0.0
        if self.loops:
            if self._sent[-1] <= 0:
                return math.inf
            rounds = math.floor(target / self._sent[-1])
            target -= rounds * self._sent[-1]
            rounds_s = rounds * self.duration_s
            if target <= 0:  # the last byte leaves within the round before
                target, rounds_s = self._sent[-1], rounds_s - self.duration_s
        index = min(self._first_reaching(target), len(self.pieces) - 1)
        rate = self.pieces[index].bytes_per_s
        if rate <= 0:
            return math.inf
        return max(start_s, rounds_s + self.time_s[index] + (target - self._sent[index]) / rate)

    def _first_reaching(self, target: float) -> int:
        """The piece in which the running sum gets to `target`."""
        low, high = 0, len(self.pieces)
        while low < high:
            middle = (low + high) // 2
            if self._sent[middle + 1] >= target:
                high = middle
            else:
                low = middle + 1
        return low

    def next_up(self, t: float) -> float:
        """`t` itself while the link is up, else the end of the outage; infinite where there is none."""
        if self.at(t).up:
            return t
        rounds, inside = self._inside(t)
        for turn in (0.0, self.duration_s) if self.loops else (0.0,):
            first = self._index(inside) if not turn else 0
            for index in range(first, len(self.pieces)):
                if self.pieces[index].up:
                    return rounds + turn + self.time_s[index]
        return math.inf

    def arrival(self, start_s: float, size_bytes: float) -> float:
        """When the last of `size_bytes` is there: sent, half a round trip later, held up by an outage on the way."""
        sent = self.transfer_end(start_s, size_bytes)
        if math.isinf(sent):
            return sent
        return self.next_up(sent + self.at(sent).rtt_ms / 2000)

    def looped(self, loops: bool = True) -> Trace:
        return Trace(self.name, self.time_s, self.pieces, self.duration_s, loops)

    def mean_mbps(self) -> float:
        """Over the whole trace, outages and losses counted."""
        return self._sent[-1] / self.duration_s / BYTES_PER_MBIT


def evenly(name: str, step_s: float, pieces: Iterable[Conditions]) -> Trace:
    """A trace whose pieces last `step_s` each; neighbours that are equal become one."""
    time_s: list[float] = []
    kept: list[Conditions] = []
    count = 0
    for index, piece in enumerate(pieces):
        count = index + 1
        if not kept or kept[-1] != piece:
            time_s.append(round(index * step_s, 6))
            kept.append(piece)
    return Trace(name, tuple(time_s), tuple(kept), round(count * step_s, 6))
