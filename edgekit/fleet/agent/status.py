"""An agent from outside, running or not: what a person wants to know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgekit.bundle.layout import MANIFEST
from edgekit.errors import BundleError, ConflictError, UsageError
from edgekit.fleet.agent.home import Home, State
from edgekit.fleet.agent.identity import load_identity
from edgekit.fleet.agent.orders import Orders, read_orders
from edgekit.fleet.agent.reached import Reached, read_reached
from edgekit.fleet.agent.ring import Ring


@dataclass(frozen=True)
class AgentStatus:
    """`bundle`: the name of what answers. `coming_bytes`: what came of the next one so far. `trouble`: why it cannot
    be told who this is, "" where it can. `reached`: the fleet, when it was last asked; None before that."""

    name: str
    fleet: str
    trouble: str
    is_running: bool
    state: State
    bundle: str
    plan: Orders
    windows: dict[str, int]
    coming_bytes: int
    reached: Reached | None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fleet": self.fleet,
            "trouble": self.trouble,
            "running": self.is_running,
            "state": self.state.model_dump(mode="json"),
            "bundle": self.bundle,
            "plan": self.plan.model_dump(mode="json"),
            "windows": self.windows,
            "coming_bytes": self.coming_bytes,
            "reached": None if self.reached is None else self.reached.model_dump(mode="json"),
        }


def describe(home: Home) -> AgentStatus:
    """Changes nothing. Raises UsageError where this folder was never enrolled."""
    name = fleet = trouble = ""
    try:
        identity = load_identity(home)
        name, fleet = identity.name, identity.fleet
    except UsageError as error:
        if not (home.path / "identity.json").exists():
            raise
        trouble = error.message
    try:
        state = home.read_state()
    except BundleError as error:
        state, trouble = State(), trouble or error.message
    parts = home.part.iterdir() if home.part.is_dir() else ()
    return AgentStatus(
        name,
        fleet,
        trouble,
        _is_running(home),
        state,
        _bundle_name(home, state.active) if state.active else "",
        read_orders(home.path),
        Ring(home).describe(),
        sum(part.stat().st_size for part in parts),
        read_reached(home.path),
    )


def _is_running(home: Home) -> bool:
    try:
        with home.hold():
            return False
    except ConflictError:
        return True


def _bundle_name(home: Home, digest: str) -> str:
    try:
        return str(json.loads((home.slot(digest) / MANIFEST).read_bytes())["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return "damaged"
