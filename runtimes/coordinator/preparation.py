"""The device's share of a request: head, exit and encoder, up to what is sent to the node."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.bundle.manifest import Variant
from edgekit.runtimes.coordinator.itinerary import Leg
from edgekit.runtimes.coordinator.means import Means
from edgekit.runtimes.coordinator.parts import HeadResult, Phase
from edgekit.runtimes.peer import Request
from edgekit.runtimes.session import Feeds


@dataclass(frozen=True)
class Prepared:
    """`request` is None where the exit's answer stands. `phases`: (stage, start, end) of what was run for it, in the
    clock's seconds; a head that was there already is not among them."""

    head: HeadResult
    request: Request | None = None
    phases: tuple[Phase, ...] = ()


class Preparation:
    """Of one question. A head that was run for one leg is not run again for the next."""

    def __init__(self, means: Means, feeds: Feeds, request_id: str) -> None:
        self._means, self._feeds, self._id = means, feeds, request_id
        self._sequence = means.next_sequence()
        self._heads: dict[tuple[str, ...], HeadResult] = {}

    def prepare(self, variant: Variant, leg: Leg, number: int) -> Prepared:
        """For the leg of that number. Takes the device's time: in the pool. Raises SessionError or CodecError."""
        device = tuple(name for name in variant.parts if self._means.manifest.part(name).tier == "device")
        threshold = variant.exit.threshold if variant.exit is not None else None
        key = (*device, variant.exit.part if variant.exit is not None else "")
        head = self._heads.get(key)
        phases: tuple[Phase, ...] = ()
        if head is None:
            head = self._means.parts.run_head(variant, self._feeds, threshold)
            self._heads[key], phases = head, head.phases
            if head.sure is not None and threshold is not None and head.sure >= threshold:
                return Prepared(head, phases=phases)
        started = self._means.clock.now()
        frames = self._means.encode(variant, head, leg, self._sequence)
        phases = (*phases, ("encode", started, self._means.clock.now()))
        request = Request(
            variant=variant.name,
            part=variant.parts[len(device)],
            plan_digest=self._means.plan_digest(variant.name),
            frames=frames,
            rates=leg.rates,
            sender=self._means.sender if leg.numbered or leg.refines is not None else "",
            id=self._id if number == 0 else f"{self._id}-{number}",
        )
        return Prepared(head, request, phases)
