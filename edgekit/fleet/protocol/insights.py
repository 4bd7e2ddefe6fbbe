"""What the fleet found out about its devices: who differs from its peers, whose inputs or answers have changed, and
how each should run its bundle.

GET  /v1/insights                  Page[Finding]: suspects and drift, the worst first
GET  /v1/devices/<key>/plan        PlanView
POST /v1/devices/<key>/replan      PlanView, chosen anew
"""

from __future__ import annotations

from typing import Literal

from edgekit.fleet.protocol.agents import PlanOrder
from edgekit.fleet.protocol.wire import Digest, Heard, Identifier, Text

# suspect: unlike its peers at the same time; drift: unlike its own past with the same bundle.
FindingKind = Literal["suspect", "drift"]


class Finding(Heard):
    """`value` against the `usual`: the peers' median, or the limit of the index of drift. `spread`: a robust standard
    deviation of the peers (a factor for latencies and links), 0 for drift. `score`: how many of these it is off, or
    index over limit. `before` and `now`: shares of a drifting histogram, in bins that end at `edges`. `text` says it
    in words."""

    device: Identifier
    name: str
    kind: FindingKind
    metric: str
    unit: str = ""
    digest: Digest
    value: float
    usual: float
    spread: float = 0.0
    score: float
    peers: int = 0
    samples: int = 0
    distance: float = 0.0
    before: tuple[float, ...] = ()
    now: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    since: float
    at: float
    text: Text = ""


class LinkFigures(Heard):
    """Of the windows of `since` to `until`: medians, and the quarter of the worse (`slow`) side."""

    windows: int
    since: float
    until: float
    bandwidth_mbps: float
    rtt_ms: float
    loss: float
    slow_bandwidth_mbps: float
    slow_rtt_ms: float


class Choice(Heard):
    """A way to run the bundle, at its best rate, as it is expected there: `slow_ms` over the slow quartile of the link.
    `allowed` False: it breaks a limit, which `why` names."""

    variant: str
    rate: int
    latency_ms: float
    slow_ms: float
    drop: float
    bytes_sent: float
    energy_mj: float
    allowed: bool = True
    why: str = ""


class PlanView(Heard):
    """`link` None: nobody measured one. `scale`: how much slower the device computes than its profile says, from
    `scale_samples` answers; 1 where that is not known. `order`: what it was told; `best`: what would be chosen now.
    `note`: why nothing is chosen, "" where something is."""

    device: Identifier
    name: str
    digest: Digest | None
    bundle: str = ""
    profile: str = ""
    link: LinkFigures | None = None
    scale: float = 1.0
    scale_samples: int = 0
    measured_ms: float | None = None
    order: PlanOrder | None = None
    best: PlanOrder | None = None
    choices: tuple[Choice, ...] = ()
    note: str = ""
