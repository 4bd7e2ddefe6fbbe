"""The nodes that a coordinator was given, and which of them a variant asks first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import TIERS, Manifest, Tier
from edgekit.errors import PlanError, RemoteError
from edgekit.planning.plan import Hop
from edgekit.runtimes.coordinator.breaker import BreakerSettings
from edgekit.runtimes.coordinator.clock import Clock
from edgekit.runtimes.coordinator.route import RECHECK_S, Route
from edgekit.runtimes.grpc_peer import GrpcPeer
from edgekit.runtimes.peer import Peer
from edgekit.runtimes.protocol.client import ClientOptions


class Routes:
    """One Route for each node given. A cloud that has no address of its own is asked through the edge.

    Raises PlanError for a node that the bundle has nothing for, and like GrpcPeer.
    """

    def __init__(
        self,
        bundle: Bundle,
        ends: Mapping[Tier, str | Peer | None],
        clock: Clock,
        *,
        options: ClientOptions = ClientOptions(),
        breaker: BreakerSettings = BreakerSettings(),
        recheck_s: float = RECHECK_S,
        on_handshake: Callable[[Route], None] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._first_tier = {variant.name: first_tier(manifest, variant.name) for variant in manifest.variants}
        self.plan_digests = {variant.name: manifest.plan_digest(variant.name) for variant in manifest.variants}
        self.codec_digests = {codec.name: manifest.codec_digest(codec.name) for codec in manifest.codecs}
        self._routes: dict[Tier, Route] = {}
        given = {tier: end for tier, end in ends.items() if end is not None}
        for tier, end in given.items():
            behind = {tier, "cloud"} if tier == "edge" and "cloud" not in given else {tier}
            parts = [
                next(part for part in variant.parts if manifest.part(part).tier != "device")
                for variant in manifest.variants
                if self._first_tier[variant.name] in behind
            ]
            if not parts:
                self.close()
                raise PlanError(
                    f"the bundle {manifest.name} has nothing to run on the {tier}",
                    binding="policy",
                    hint=f"leave out --{tier}, or export with --{tier} and --split",
                )
            peer = GrpcPeer(end, manifest.name, dict.fromkeys(parts), options) if isinstance(end, str) else end
            self._routes[tier] = Route(
                tier,
                peer,
                clock,
                bundle_digest=bundle.digest,
                plans=self.plan_digests,
                codecs={variant.name: variant.codecs for variant in manifest.variants},
                codec_digests=self.codec_digests,
                breaker=breaker,
                recheck_s=recheck_s,
                on_handshake=on_handshake,
            )

    def to(self, variant: str) -> Route | None:
        """None for a variant that stays on the device, or whose node was not given."""
        tier = self._first_tier[variant]
        if tier is None:
            return None
        return self._routes.get(tier) or (self._routes.get("edge") if tier == "cloud" else None)

    def can_go(self, variant: str) -> bool:
        return self._first_tier[variant] is None or self.to(variant) is not None

    @property
    def hops(self) -> tuple[Hop, ...]:
        """The links in play, what lies behind the nodes included."""
        near: list[Hop] = [("device", tier) for tier in TIERS[1:] if tier in self._routes]
        return (*near, ("edge", "cloud"))

    def troubles(self) -> dict[Tier, str]:
        """Nodes that may be asked for nothing now, and why."""
        found = {tier: route.trouble for tier, route in self._routes.items()}
        return {tier: trouble for tier, trouble in found.items() if trouble}

    def refusals(self, wanted: Sequence[str], wait_s: float) -> dict[Tier, RemoteError]:
        """Nodes that may be asked for none of the variants `wanted` that go to them; see `Route.refusal`."""
        found = {route.tier: route.refusal(mine, wait_s) for route, mine in self._shared(wanted)}
        return {tier: refusal for tier, refusal in found.items() if refusal is not None}

    def differing(self, wanted: Sequence[str]) -> dict[Tier, dict[str, str]]:
        """Of each node the variants among `wanted` that are others there; see `Route.differing`."""
        found = {route.tier: route.differing(mine) for route, mine in self._shared(wanted)}
        return {tier: reasons for tier, reasons in found.items() if reasons}

    def _shared(self, wanted: Sequence[str]) -> Iterator[tuple[Route, list[str]]]:
        """Which of the variants go to which node."""
        for route in self:
            yield route, [name for name in wanted if self.to(name) is route]

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def close(self) -> None:
        for route in self._routes.values():
            route.close()


def first_tier(manifest: Manifest, variant: str) -> Tier | None:
    """The tier of the first node that a variant asks; None where it stays on the device."""
    tiers = [manifest.part(name).tier for name in manifest.variant(variant).parts]
    return next((tier for tier in tiers if tier != "device"), None)
