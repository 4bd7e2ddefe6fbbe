"""Between an agent and the service: enrolment, then one kind of call for ever, `Sync` answered by `Desired`.

POST /v1/enroll          Enrolment -> Enrolled: a token and a certificate request become a device
POST /v1/agent/renew     Renewal -> Enrolled: a new certificate before the old one ends
POST /v1/agent/sync      Sync -> Desired: what was done and seen, and what is to be done; waits with `wait_s`
GET  /v1/tuf/...         signed metadata of what may be installed
GET  /v1/blobs/<sha256>  a file of a bundle, by ranges
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgekit.bundle.manifest import Tier
from edgekit.fleet.protocol.windows import MAX_WINDOWS, Window
from edgekit.fleet.protocol.wire import Digest, Heard, Identifier, Labels, Name, Text, Wire

MAX_WAIT_S = 60.0
Pem = Annotated[str, Field(max_length=16_384)]

# idle: nothing to do; the others in the order of an update; failed: the old slot answers, `reason` says why.
Phase = Literal["idle", "downloading", "verifying", "warming", "checking", "switching", "failed"]


class Facts(Wire):
    """What a device is. `profile`: the device profile of edgekit that describes it best. `boot`: changes at each start
    of the agent, so that two agents with one identity are found out."""

    boot: Identifier
    agent: str = Field(max_length=64)
    system: str = Field(max_length=200)
    machine: str = Field(max_length=64)
    profile: str = Field(default="", max_length=64)
    tier: Tier = "device"
    formats: tuple[Annotated[str, Field(max_length=32)], ...] = Field(default=(), max_length=16)
    memory_bytes: int = Field(default=0, ge=0)


class Enrolment(Wire):
    """`request`: a PKCS #10 certificate request, PEM, signed with the key that was made on the device."""

    token: str = Field(max_length=200)
    name: Name
    request: Pem
    facts: Facts


class Enrolled(Heard):
    """`authority`: whom the service's own certificate and those of devices come from. `token`: the device's, which
    counts only where there is no TLS (on loopback); "" where it stays as it is. `root`: the first root of trust for
    bundles, as JSON."""

    device: Identifier
    certificate: str
    authority: str
    token: str
    root: str


class Renewal(Wire):
    request: Pem


class Slot(Wire):
    """`running`: what answers now, None where nothing does. `candidate`: what the agent works on. `checked`: golden
    inputs that `running` answered, and `right`: those that it answered right."""

    running: Digest | None = None
    candidate: Digest | None = None
    phase: Phase = "idle"
    reason: Text = ""
    checked: int = Field(default=0, ge=0)
    right: int = Field(default=0, ge=0)


class Sync(Wire):
    """`known`: the generation of the orders that the agent follows. `boot`: as in its facts. `windows`: the oldest that
    were not yet taken."""

    known: int = Field(default=0, ge=0)
    slot: Slot = Slot()
    windows: tuple[Window, ...] = Field(default=(), max_length=MAX_WINDOWS)
    facts: Facts | None = None
    boot: Identifier | None = None
    wait_s: float = Field(default=0.0, ge=0, le=MAX_WAIT_S)


class BundleOrder(Heard):
    """`target`: its path in the signed metadata. `size_bytes`: of all its files."""

    digest: Digest
    name: str
    target: str
    size_bytes: int


class PlanOrder(Heard):
    """How to run the bundle, from what was measured: `variant` of the manifest at `rate` of its codec; `why` in words.
    The coordinator takes it as its starting point and goes on re-planning by itself."""

    digest: str
    variant: str
    rate: int = 0
    why: str = ""


class Desired(Heard):
    """`bundle` None: run nothing. `kept`: others that a server keeps answering for, while devices move on.
    `taken`: the last sequence of windows that is stored, -1 for none. `compare_share`: of requests whose answer the
    cloud's full model gives too, 0 without the owner's consent. `interval_s`: between two syncs. `now`: the fleet's
    clock, by which a device with another one dates its windows; None from a fleet that does not tell."""

    generation: int
    bundle: BundleOrder | None = None
    kept: tuple[BundleOrder, ...] = ()
    plan: PlanOrder | None = None
    compare_share: float = 0.0
    interval_s: float = Field(default=30.0, gt=0, le=86_400)
    taken: int = -1
    labels: Labels = Field(default_factory=dict)
    now: float | None = None
