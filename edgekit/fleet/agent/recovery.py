"""What counts at a start, whatever the disk has been through."""

from __future__ import annotations

import contextlib
import logging

from edgekit.errors import BundleError, OutputError
from edgekit.fleet.agent.home import STATE, Home, State
from edgekit.fleet.agent.slots import is_whole

logger = logging.getLogger("edgekit")

UNKNOWN = {"previous": None, "heard": True, "checked": 0, "right": 0}


def recover(home: Home) -> State:
    """The state, where it names a slot that is whole, byte by byte. Else the first of these that is: the slot before
    it, where `current` leads, any other; one that the state does not vouch for must answer right once more. What a cut
    left half done stays: the next update goes on from there, and lets go of the rest. Never raises."""
    try:
        written = home.read_state()
    except BundleError as error:
        logger.error("%s: it is made anew from the slots", error.message)
        state = _from_slots(home, State())
        with contextlib.suppress(OSError):
            home.disk.rename(home.path / STATE, home.path / f"{STATE}.damaged")
    else:
        state = _checked(home, written)
        if state == written:
            return state
    with contextlib.suppress(OutputError):  # a disk that cannot be written to is found out by all who try
        home.write_state(state)
    return state


def _checked(home: Home, state: State) -> State:
    kept = tuple(one for one in state.kept if is_whole(home.slot(one), one))
    state = state.model_copy(update={"kept": kept})
    if state.active is None or is_whole(home.slot(state.active), state.active):
        return state
    logger.error("%s is damaged on this disk", state.active[:16])
    if state.previous is not None and is_whole(home.slot(state.previous), state.previous):
        return state.model_copy(
            update={
                "active": state.previous,
                "previous": None,
                "confirmed": True,
                "heard": True,
                "checked": 0,
                "right": 0,
            }
        )
    return _from_slots(home, state)


def _from_slots(home: Home, state: State) -> State:
    pointed = home.pointed()
    first = [pointed.name] if pointed is not None else []
    others = sorted(one.name for one in home.slots.iterdir()) if home.slots.is_dir() else []
    found = next((one for one in (*first, *others) if is_whole(home.slot(one), one)), None)
    return state.model_copy(update=UNKNOWN | {"active": found, "confirmed": found is None})
