"""Whether the fleet is reached, for a person who asks the device: `reached.json`, written where that changes.

    {"since": 1.8e9, "trouble": "the fleet does not answer: ..."}

`trouble` is "" where it is reached.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import OutputError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.wire import Heard

logger = logging.getLogger("edgekit")

REACHED = "reached.json"
MOST_CHARACTERS = 500  # of a trouble


class Reached(Heard):
    """`since`: seconds since 1970."""

    since: float
    trouble: str = ""


def read_reached(path: Path) -> Reached | None:
    """Of a home's folder; None where nobody asked the fleet yet, or that cannot be read."""
    try:
        return Reached.model_validate_json((path / REACHED).read_bytes())
    except (OSError, ValidationError):
        return None


def note_reached(home: Home, now: float, trouble: str = "") -> None:
    """A disk that cannot be written to keeps what was there before; so does the same again."""
    fresh = Reached(since=now, trouble=trouble[:MOST_CHARACTERS])
    before = read_reached(home.path)
    if before is not None and before.trouble == fresh.trouble:
        return
    try:
        home.replace(REACHED, fresh.model_dump_json().encode(), 0o640)
    except OutputError as error:
        logger.debug("whether the fleet is reached is not written down: %s", error.message)
