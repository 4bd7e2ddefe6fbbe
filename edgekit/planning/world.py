"""A World in virtual time: what one request costs on a trace, from a Way's numbers alone. No clocks, no threads.

Compute times are the Way's; bytes take their turn on the traced link, in each direction after those sent before; a
server never makes a request wait. Dice (jitter, losses, whether a sample leaves at the exit) are thrown once for each
request, the same for every policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from edgekit.planning.link import Link
from edgekit.planning.plan import Hop, Links, Power, Way
from edgekit.planning.traces import Conditions, Trace

PACKET_BYTES = 1448
MIN_STALL_MS = 10.0


@dataclass(frozen=True)
class Choice:
    """What a policy wants done with a request. `overdue_ms` after the device has handed over its bytes it starts the
    local way as well."""

    way: Way
    rates: tuple[int, ...] = ()
    overdue_ms: float = math.inf

    def __str__(self) -> str:
        return f"{self.way.variant}{'@' + '-'.join(map(str, self.rates)) if self.rates else ''}"

    @property
    def drop(self) -> float:
        rates = zip(self.way.crossings, self.rates, strict=True)
        return self.way.drop + self.way.exit_drop + sum(crossing.rates[rate].drop for crossing, rate in rates)

    @property
    def agreement(self) -> float | None:
        """None where several codecs or an exit take part: what they leave together was not measured; as in `Plan`."""
        if len(self.rates) != 1 or self.way.local_share:
            return None
        return self.way.crossings[0].rates[self.rates[0]].agreement


@dataclass(frozen=True)
class Dice:
    """`exit`, `up_loss`, `down_loss` in 0 to 1, the jitters in -1 to 1."""

    exit: float = 0.5
    up_jitter: float = 0.0
    down_jitter: float = 0.0
    up_loss: float = 1.0
    down_loss: float = 1.0

    @classmethod
    def throw(cls, random: Random) -> Dice:
        exit, up, down, up_loss, down_loss = (random.random() for _ in range(5))
        return cls(exit, 2 * up - 1, 2 * down - 1, up_loss, down_loss)


@dataclass(frozen=True)
class Attempt:
    """A request carried out to its end. Times in seconds of the trace; `sent_s` is when the device's own part was done
    and bytes were handed to the link. `network_ms` is all after that but computing; for `radio_s` of it something was
    sent or received. `compute_mj` is what the device's parts and codecs take."""

    answer_s: float
    sent_s: float
    network_ms: float
    radio_s: float
    bytes_sent: float
    compute_mj: float
    exited: bool
    up_free_s: float
    down_free_s: float


class World:
    """The trace lies between the device and the tier above it; `above` are the links between servers."""

    def __init__(
        self,
        trace: Trace,
        above: Links | None = None,
        power: Power | None = None,
    ) -> None:
        self.trace, self._power, self._links = trace, power, above or {}
        self._above = self._links.get(("edge", "cloud"))
        self.up_free_s = self.down_free_s = 0.0

    def conditions(self, now_s: float) -> Conditions:
        return self.trace.at(now_s)

    def links(self, device_link: Link) -> Links:
        """What a planner reads, with `device_link` as it knows the traced one."""
        return {**self._links, ("device", "edge"): device_link}

    def attempt(self, choice: Choice, start_s: float, dice: Dice) -> Attempt:
        """What would come of it; nothing is taken from the link before `commit`. Raises KeyError where the way needs
        a link between servers that is not given."""
        way, power = choice.way, self._power
        now = start_s + way.exit_ms / 1e3
        energy = way.exit_ms * power.compute_w if power else 0.0
        up_free, down_free, bytes_sent, radio_s = self.up_free_s, self.down_free_s, 0.0, 0.0
        sent = math.nan
        crossings = iter(zip(way.crossings, choice.rates, strict=True))
        compute_s = 0.0
        for stage in way.stages:
            if stage.tier == "device":
                # On average: who has left before does not come here.
                now += stage.share * stage.latency_ms / 1e3
                energy += stage.share * stage.energy_mj
                continue
            crossing, index = next(crossings)
            rate = crossing.rates[index]
            if crossing.hop[0] == "device":
                if dice.exit < way.local_share:
                    return Attempt(now, now, 0.0, 0.0, 0.0, energy, True, up_free, down_free)
                now += crossing.encode_ms / 1e3
                energy += crossing.encode_ms * power.compute_w if power else 0.0
                sent = now
                leaves = max(now, up_free)
                up_free = self.trace.transfer_end(leaves, rate.size_bytes)
                radio_s += _finite(up_free - leaves)
                now = self._arrival(up_free, rate.size_bytes, dice.up_jitter, dice.up_loss)
                bytes_sent += rate.size_bytes
            else:
                compute_s += crossing.encode_ms / 1e3
                now += crossing.encode_ms / 1e3
            now += self._above_s(crossing.hop, rate.size_bytes)
            compute_s += (crossing.decode_ms + stage.latency_ms) / 1e3
            now += (crossing.decode_ms + stage.latency_ms) / 1e3
        if not way.crossings:
            return Attempt(now, now, 0.0, 0.0, 0.0, energy, False, up_free, down_free)
        now += sum(self._above_s(crossing.hop, way.answer_bytes) for crossing in way.crossings)
        leaves = max(now, down_free)
        if math.isfinite(leaves):
            down_free = self.trace.transfer_end(leaves, way.answer_bytes)
            radio_s += _finite(down_free - leaves)
            now = self._arrival(down_free, way.answer_bytes, dice.down_jitter, dice.down_loss)
        network_ms = 1e3 * (now - sent - compute_s)
        return Attempt(now, sent, network_ms, radio_s, bytes_sent, energy, False, up_free, down_free)

    def energy_mj(self, attempt: Attempt, until_s: float) -> float:
        """The device's own, as far as it has waited for the answer."""
        if self._power is None:
            return attempt.compute_mj
        waited_s = max(0.0, min(until_s, attempt.answer_s) - attempt.sent_s)
        radio_s = min(attempt.radio_s, waited_s)
        return attempt.compute_mj + 1e3 * (radio_s * self._power.radio_w + (waited_s - radio_s) * self._power.idle_w)

    def commit(self, attempt: Attempt) -> None:
        """The bytes of `attempt` have their place on the link. What never gets through does not stay in the way of
        what comes after the end of the trace."""
        self.up_free_s = max(self.up_free_s, attempt.up_free_s)
        self.down_free_s = max(self.down_free_s, attempt.down_free_s)

    def expected_ms(self, choice: Choice, start_s: float) -> float:
        """The mean latency over whether the sample leaves at the exit, with the trace known and without luck."""
        remote = self.attempt(choice, start_s, Dice(exit=1.0)).answer_s - start_s
        share = choice.way.local_share
        if not share or not choice.way.crossings:
            return 1e3 * remote
        early = self.attempt(choice, start_s, Dice(exit=-1.0)).answer_s - start_s
        return 1e3 * (share * early + (1 - share) * remote)

    def ping(self, start_s: float, size_bytes: float, answer_bytes: float) -> Attempt:
        """A probe: bytes up and an answer down, with no computing."""
        begins = max(start_s, self.up_free_s)
        up_free = self.trace.transfer_end(begins, size_bytes)
        there = self._arrival(up_free, size_bytes, 0.0, 1.0)
        leaves = max(there, self.down_free_s)
        down_free = self.trace.transfer_end(leaves, answer_bytes) if math.isfinite(leaves) else self.down_free_s
        back = self._arrival(down_free, answer_bytes, 0.0, 1.0) if math.isfinite(leaves) else math.inf
        radio_s = _finite(up_free - begins) + (_finite(down_free - leaves) if math.isfinite(leaves) else 0.0)
        return Attempt(back, start_s, 1e3 * (back - start_s), radio_s, size_bytes, 0.0, False, up_free, down_free)

    def _arrival(self, left_s: float, size_bytes: float, jitter: float, loss: float) -> float:
        """As the link emulator delays: half a round trip, the jitter, a round trip more for a loss, two where nothing
        follows the lost packet; and what meets an outage waits for its end."""
        if not math.isfinite(left_s):
            return math.inf
        then = self.trace.at(left_s)
        delay_ms = max(0.0, then.rtt_ms / 2 + jitter * then.jitter_ms)
        packets = max(1, math.ceil(size_bytes / PACKET_BYTES))
        if then.loss and loss < 1 - (1 - then.loss) ** packets:
            delay_ms += max(MIN_STALL_MS, then.rtt_ms) * (2 if packets == 1 else 1)
        return self.trace.next_up(left_s + delay_ms / 1e3)

    def _above_s(self, hop: Hop, size_bytes: float) -> float:
        """Over the link between servers, where the hop takes it; a device that reaches the cloud without an edge on
        its way has none to take."""
        if hop[1] != "cloud" or (self._above is None and hop[0] == "device"):
            return 0.0
        if self._above is None:
            raise KeyError(hop)
        return self._above.one_way_ms(size_bytes) / 1e3


def _finite(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0
