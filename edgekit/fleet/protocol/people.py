"""Who may do what, devices and groups as people see them, and the audit log."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from edgekit.bundle.manifest import Tier
from edgekit.fleet.protocol.agents import PlanOrder, Slot
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import Heard, Identifier, Labels, Name, Wire

# viewer: reads; operator: also pushes, rolls out, labels, invites devices; admin: also people and keys.
Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")

DeviceStanding = Literal["active", "revoked"]


class PersonOrder(Wire):
    """`valid_s`: how long the token counts, None for ever."""

    name: Name
    role: Role
    valid_s: float | None = Field(default=None, gt=0, le=3650 * 86_400)


class PersonView(Heard):
    name: str
    role: Role
    created_at: float
    last_seen_at: float | None = None
    ends_at: float | None = None


class PersonMade(PersonView):
    """`token` is shown this once; the service keeps its hash."""

    token: str


class InvitationOrder(Wire):
    """A token with which `uses` devices may enrol until it ends; they get `labels`. `device`: one that is here already
    gets a new key by it, and stays what it is; its old key is worthless then."""

    labels: Labels = Field(default_factory=dict)
    uses: int = Field(default=1, ge=1, le=100_000)
    valid_s: float = Field(default=86_400.0, gt=0, le=365 * 86_400)
    device: Name | None = None


class InvitationView(Heard):
    id: Identifier
    labels: Labels
    uses_left: int
    ends_at: float
    device: Name | None = None


class InvitationMade(InvitationView):
    token: str


class DeviceView(Heard):
    """`connected`: heard of within three of its intervals. `wanted`: the digest that it should run."""

    id: Identifier
    name: str
    labels: Labels
    tier: Tier
    standing: DeviceStanding
    connected: bool
    enrolled_at: float
    seen_at: float | None
    slot: Slot
    wanted: str | None
    agent: str = ""
    system: str = ""
    profile: str = ""
    plan: PlanOrder | None = None
    certificate_ends_at: float | None = None
    latest: Window | None = None
    version: int


class DeviceChange(Wire):
    """None leaves a thing as it is."""

    labels: Labels | None = None
    standing: DeviceStanding | None = None


class GroupOrder(Wire):
    """`selector`: "board=rpi4,site!=lab"."""

    selector: Annotated[str, Field(max_length=500)]
    interval_s: float = Field(default=30.0, ge=1, le=86_400)
    compare_share: float = Field(default=0.0, ge=0, le=1)


class GroupView(Heard):
    name: str
    selector: str
    interval_s: float
    compare_share: float
    devices: int
    connected: int
    running: dict[str, int]
    version: int


class EventView(Heard):
    """A line of the audit log: `actor` did `action` to `subject`."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class Overview(Heard):
    """`edgekit fleet status`."""

    version: str
    devices: int
    connected: int
    bundles: int
    rollouts: int
    groups: tuple[GroupView, ...]
    trust_ends_at: float | None = None
