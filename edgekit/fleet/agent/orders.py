"""What the fleet wants of applications, for them to read: `plan.json`, replaced as a whole.

    {"generation": 7, "digest": "...", "variant": "split", "rate": 2, "why": "...", "compare_share": 0.01}

`variant` "" where the fleet has no opinion. A plan is for the bundle `digest` alone: who runs another passes over it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import OutputError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.agents import Desired
from edgekit.fleet.protocol.wire import Heard

logger = logging.getLogger("edgekit")

PLAN = "plan.json"


class Orders(Heard):
    generation: int = 0
    digest: str = ""
    variant: str = ""
    rate: int = 0
    why: str = ""
    compare_share: float = 0.0


def read_orders(path: Path) -> Orders:
    """Of a home's folder; none where there are none, or none that can be read."""
    try:
        return Orders.model_validate_json((path / PLAN).read_bytes())
    except (OSError, ValidationError):
        return Orders()


def write_orders(home: Home, desired: Desired) -> None:
    """Where something changed. A disk that cannot be written to keeps the ones before, which is logged."""
    plan = desired.plan
    orders = Orders(
        generation=desired.generation,
        digest=plan.digest if plan else "",
        variant=plan.variant if plan else "",
        rate=plan.rate if plan else 0,
        why=plan.why if plan else "",
        compare_share=desired.compare_share,
    )
    if orders == read_orders(home.path):
        return
    try:
        home.replace(PLAN, orders.model_dump_json(indent=2).encode(), 0o640)
    except OutputError as error:
        logger.warning("applications are not told of the plan: %s", error.message)
