"""What a coordinator has learnt: what the ways cost here and now, and what the links give."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.bundle.manifest import TIERS, Manifest, Tier
from edgekit.devices.device import Device, load_device
from edgekit.errors import UnknownNameError
from edgekit.planning.costs import MeasuredCosts, names_of
from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link
from edgekit.planning.plan import Hop, Links, Power, Way
from edgekit.planning.ways import power_of, ways
from edgekit.runtimes.coordinator.itinerary import Sent

logger = logging.getLogger("edgekit")

# Until something was measured: a fair mobile link, and a wired one between edge and cloud.
FIRST_LINK = Link(10.0, 20.0)
FIRST_UPSTREAM = Link(100.0, 10.0)
SERVER = "x86-server"
# A part that neither states its costs nor was measured yet.
UNKNOWN_MS = 1.0
REFRESH_S = 0.25


@dataclass(frozen=True)
class Probe:
    hop: Hop
    padding_bytes: int


class Knowledge:
    """Safe from any thread. Times are the clock's seconds, given by the caller."""

    def __init__(
        self,
        manifest: Manifest,
        measured: Mapping[str, float],
        hops: Sequence[Hop],
        first: Mapping[Hop, Link] | None = None,
        *,
        device: Device | None = None,
        servers: Mapping[Tier, Device] | None = None,
    ) -> None:
        """`measured`: ms by part, and by `encode:CODEC`, on this device. Raises PlanError or DeviceError where a part
        cannot be priced."""
        own = device if device is not None else _profile(manifest.device)
        unknown = {part.name: UNKNOWN_MS for part in manifest.parts if not part.segments}
        named: dict[Tier, str] = dict.fromkeys(TIERS[1:], SERVER)
        for tier, name in manifest.tiers.items():
            named[tier] = name
        profiles = {tier: _profile(name) or load_device(SERVER) for tier, name in named.items()}
        found = ways(manifest, own or load_device(SERVER), {**profiles, **(servers or {})}, {**unknown, **measured})
        self.power: Power | None = power_of(own) if own is not None else None
        self._lock = threading.Lock()
        self._costs = MeasuredCosts(found)
        self._known_names = frozenset(names_of(found))
        self._ways: tuple[Way, ...] = found
        self._stale_since: float | None = None
        first = first or {}
        self._links = {
            hop: LinkEstimate(first.get(hop, FIRST_UPSTREAM if hop == ("edge", "cloud") else FIRST_LINK))
            for hop in hops
        }

    def ways(self, now_s: float) -> tuple[Way, ...]:
        """With the costs as measured up to a quarter of a second ago."""
        with self._lock:
            if self._stale_since is not None and now_s - self._stale_since >= REFRESH_S:
                self._ways, self._stale_since = self._costs.corrected(), None
            return self._ways

    @property
    def estimates(self) -> dict[Hop, LinkEstimate]:
        """The live ones: figures read while another thread learns may be of before or after."""
        return self._links

    def links(self) -> Links:
        with self._lock:
            return {hop: estimate.link for hop, estimate in self._links.items()}

    def timed(self, name: str, took_ms: float, now_s: float) -> None:
        """A part or an `encode:CODEC` took so long here."""
        if name in self._known_names and took_ms > 0:
            with self._lock:
                self._costs.observe(name, took_ms)
                self._mark(now_s)

    def exchanged(self, sent: Sent, now_s: float) -> None:
        """A request and what came of it: link and servers learn from an answer, the link alone from silence."""
        hop: Hop = ("device", sent.tier)
        way = next((way for way in self._ways if way.variant == sent.leg.variant), None)
        if hop not in self._links or way is None:
            return
        reply = sent.reply
        with self._lock:
            if reply is None:
                if sent.is_overdue:
                    remote_ms = sum(stage.latency_ms for stage in way.stages if stage.tier != "device")
                    waited_ms = max(0.0, sent.elapsed_ms - remote_ms)
                    self._links[hop].observe(sent.bytes_sent + way.answer_bytes, waited_ms, now_s, unfinished=True)
                return
            network_ms = max(0.0, sent.elapsed_ms - reply.compute_ms - reply.queue_ms)
            size_bytes = reply.sent_bytes + reply.size_bytes
            if not reply.forward_ms:
                self._links[hop].observe(size_bytes, network_ms, now_s)
            elif ("edge", "cloud") in self._links:
                # Both links are in it: the first is known better, what is left is the second's.
                near = self._links[hop].link
                near_ms = near.rtt_ms + near.transfer_ms(size_bytes)
                above = (
                    size_bytes if len(way.crossings) < 2 else way.crossings[1].rates[0].size_bytes + way.answer_bytes
                )
                self._links["edge", "cloud"].observe(above, max(0.0, network_ms - near_ms), now_s)
            self._learn_compute(way, reply.compute_ms + reply.queue_ms, now_s)

    def pinged(self, hop: Hop, size_bytes: int, took_ms: float, now_s: float, *, unfinished: bool) -> None:
        with self._lock:
            self._links[hop].observe(size_bytes, took_ms, now_s, unfinished=unfinished)

    def due_probe(self, hop: Hop, now_s: float) -> Probe | None:
        """What to send to know `hop` again, None while requests tell enough or a probe is on its way."""
        with self._lock:
            estimate = self._links.get(hop)
            if estimate is None or not estimate.wants_probe(now_s):
                return None
            estimate.probing(now_s)
            return Probe(hop, estimate.probe_bytes)

    def _learn_compute(self, way: Way, took_ms: float, now_s: float) -> None:
        """Queues included: a node that is busy is slow, whatever the reason. Shared out as predicted."""
        original = next(entry for entry in self._costs.ways if entry.variant == way.variant)
        predicted = sum(stage.latency_ms for stage in original.stages if stage.tier != "device")
        predicted += sum(crossing.decode_ms for crossing in original.crossings)
        if predicted <= 0 or took_ms <= 0:
            return
        for stage in original.stages:
            if stage.tier != "device" and stage.latency_ms > 0:
                self._costs.observe(stage.part, stage.latency_ms * took_ms / predicted)
        self._mark(now_s)

    def _mark(self, now_s: float) -> None:
        if self._stale_since is None:
            self._stale_since = now_s


def _profile(name: str) -> Device | None:
    """A bundle may name a profile that only the machine which made it has: measurements take its place by and by."""
    try:
        return load_device(name)
    except UnknownNameError:
        logger.warning("the profile %r is not known here: costs are those of %s until measured", name, SERVER)
        return None
