"""What people ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from edgekit.fleet.client import pushing
from edgekit.fleet.client.connection import Connection
from edgekit.fleet.protocol.bundles import BundleView
from edgekit.fleet.protocol.insights import Finding, FindingKind, PlanView
from edgekit.fleet.protocol.people import (
    DeviceChange,
    DeviceView,
    EventView,
    GroupOrder,
    GroupView,
    InvitationMade,
    InvitationOrder,
    Overview,
    PersonMade,
    PersonOrder,
    PersonView,
)
from edgekit.fleet.protocol.rollouts import RolloutOrder, RolloutView
from edgekit.fleet.protocol.telemetry import TelemetryView
from edgekit.fleet.protocol.wire import Page

_DIGESTS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])
_GROUPS: TypeAdapter[tuple[GroupView, ...]] = TypeAdapter(tuple[GroupView, ...])
_PEOPLE: TypeAdapter[tuple[PersonView, ...]] = TypeAdapter(tuple[PersonView, ...])


class FleetClient:
    """What people ask. Close it, or use `with`."""

    def __init__(self, url: str, token: str, ca: Path | None = None) -> None:
        self.connection = Connection(url, token, ca, repeats=True)
        self._ask = self.connection.ask

    def __enter__(self) -> FleetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def overview(self) -> Overview:
        return self._ask(Overview, "GET", "/overview")

    def push(self, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> BundleView:
        """Sends what the registry lacks of a bundle (an archive or a folder). `progress`: bytes done, of all. Raises
        ConflictError where somebody else sends the same file, and stands still."""
        return pushing.push(self.connection, path, progress)

    def bundles(self, after: str | None = None, limit: int = 100) -> Page[BundleView]:
        return self._ask(Page[BundleView], "GET", "/bundles", params=_page(after, limit))

    def bundle(self, reference: str) -> BundleView:
        return self._ask(BundleView, "GET", f"/bundles/{reference}")

    def report(self, reference: str) -> bytes:
        return bytes(self.connection.call("GET", f"/bundles/{reference}/report").content)

    def remove_bundle(self, reference: str) -> None:
        self.connection.call("DELETE", f"/bundles/{reference}")

    def prune_bundles(self, keep: int, name: str = "") -> tuple[str, ...]:
        answer = self.connection.call("POST", "/retention/bundles", params={"keep": keep, "name": name})
        return _DIGESTS.validate_json(answer.content)

    def invite(self, order: InvitationOrder) -> InvitationMade:
        return self._ask(InvitationMade, "POST", "/invitations", order)

    def devices(self, selector: str = "", after: str | None = None, limit: int = 100) -> Page[DeviceView]:
        return self._ask(Page[DeviceView], "GET", "/devices", params={"selector": selector, **_page(after, limit)})

    def device(self, key: str) -> DeviceView:
        return self._ask(DeviceView, "GET", f"/devices/{key}")

    def change_device(self, key: str, change: DeviceChange) -> DeviceView:
        return self._ask(DeviceView, "PATCH", f"/devices/{key}", change)

    def remove_device(self, key: str) -> None:
        self.connection.call("DELETE", f"/devices/{key}")

    def groups(self) -> tuple[GroupView, ...]:
        return _GROUPS.validate_json(self.connection.call("GET", "/groups").content)

    def put_group(self, name: str, order: GroupOrder) -> GroupView:
        return self._ask(GroupView, "PUT", f"/groups/{name}", order)

    def remove_group(self, name: str) -> None:
        self.connection.call("DELETE", f"/groups/{name}")

    def roll_out(self, order: RolloutOrder) -> RolloutView:
        return self._ask(RolloutView, "POST", "/rollouts", order)

    def rollouts(self, after: str | None = None, limit: int = 50) -> Page[RolloutView]:
        return self._ask(Page[RolloutView], "GET", "/rollouts", params=_page(after, limit))

    def rollout(self, key: str = "latest") -> RolloutView:
        return self._ask(RolloutView, "GET", f"/rollouts/{key}")

    def turn_rollout(self, key: str, verb: str) -> RolloutView:
        """`verb`: pause, resume or rollback."""
        return self._ask(RolloutView, "POST", f"/rollouts/{key}/{verb}")

    def insights(
        self, kind: FindingKind | None = None, device: str = "", after: str | None = None, limit: int = 100
    ) -> Page[Finding]:
        """Suspects and drift, the worst first."""
        params = {"device": device, **({} if kind is None else {"kind": kind}), **_page(after, limit)}
        return self._ask(Page[Finding], "GET", "/insights", params=params)

    def plan(self, key: str) -> PlanView:
        return self._ask(PlanView, "GET", f"/devices/{key}/plan")

    def replan(self, key: str) -> PlanView:
        return self._ask(PlanView, "POST", f"/devices/{key}/replan")

    def telemetry(self, device: str, group: str, since: float, until: float, step_s: float) -> TelemetryView:
        """Of a device, of a group, or with "" for both of everyone."""
        params = {"device": device, "group": group, "since": since, "until": until, "step_s": step_s}
        return self._ask(TelemetryView, "GET", "/telemetry", params=params)

    def windows(self, selector: str, since: float, until: float) -> Iterator[str]:
        """Every window of the devices that it holds, as lines of CSV behind a header."""
        return self.connection.lines("/telemetry/windows", {"selector": selector, "since": since, "until": until})

    def events(self, after: str | None = None, limit: int = 50, subject: str = "") -> Page[EventView]:
        return self._ask(Page[EventView], "GET", "/events", params={"subject": subject, **_page(after, limit)})

    def people(self) -> tuple[PersonView, ...]:
        return _PEOPLE.validate_json(self.connection.call("GET", "/people").content)

    def add_person(self, order: PersonOrder) -> PersonMade:
        return self._ask(PersonMade, "POST", "/people", order)

    def remove_person(self, name: str) -> None:
        self.connection.call("DELETE", f"/people/{name}")


def _page(after: str | None, limit: int) -> dict[str, Any]:
    return {"limit": limit, **({} if after is None else {"after": after})}
