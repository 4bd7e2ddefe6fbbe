"""What one side may say without harm to the other, whatever it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from edgekit.fleet.protocol.agents import Desired, Slot, Sync
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.windows import Health, LinkSeen, Window
from edgekit.fleet.service import FleetService
from tests.fleet.acting import ADMIN, enroll, window
from tests.fleet.conftest import SettableClock

DIGEST = "1" * 64


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Window, "energy_mj"),
        (LinkSeen, "bandwidth_mbps"),
        (LinkSeen, "rtt_ms"),
        (Health, "temperature_c"),
        (Health, "power_w"),
    ],
)
@pytest.mark.parametrize("value", [1e300, math.inf, math.nan])
def test_a_number_that_nobody_measures_is_refused(kind: type[Any], field: str, value: float) -> None:
    held: dict[str, Any] = {
        Window: {"sequence": 1, "started_at": 1.0, "seconds": 1.0, "digest": DIGEST},
        LinkSeen: {"bandwidth_mbps": 1.0, "rtt_ms": 1.0, "loss": 0.0},
        Health: {},
    }[kind]
    kind.model_validate({**held, field: 1e3})
    with pytest.raises(ValidationError, match=field):
        kind.model_validate({**held, field: value})


def test_the_most_that_a_device_may_say_harms_nobody_else(fleet: FleetService, clock: SettableClock) -> None:
    """Sums over it are stored, read and told; the first that was not a number stopped every device's windows."""
    loud, quiet = enroll(fleet, "loud"), enroll(fleet, "quiet")
    fleet.groups.put(ADMIN, "all", GroupOrder(selector=""))
    most = (1 << 53) - 1
    said = {
        "answered": most,
        "errors": most,
        "energy_mj": 1e15,
        "latency": {400: most, -400: most},
        "link": LinkSeen(bandwidth_mbps=1e15, rtt_ms=1e15, loss=1),
        "health": Health(temperature_c=1e6, power_w=1e9),
    }
    for start in range(0, 256, 64):
        loud_windows = [window(start + one, DIGEST, clock() - 60).model_copy(update=said) for one in range(64)]
        fleet.devices.sync(loud.device, Sync(slot=Slot(running=DIGEST), windows=tuple(loud_windows)))
    fleet.devices.intake._spans_at -= 3600  # they are written with what comes next
    desired = fleet.devices.sync(quiet.device, Sync(windows=(window(1, DIGEST, clock() - 30),)))
    assert desired.taken == 1
    since, until = clock() - 600, clock()
    loud_alone = fleet.telemetry.of_device("loud", since, until, 300)
    for view in (fleet.telemetry.of_group("all", since, until, 300), loud_alone):
        assert sum(one.answered for one in view.spans) >= 256 * most
        assert view.model_dump_json()
    fleet.insights.step()
    assert fleet.devices.get("loud").latest is not None


@pytest.mark.parametrize(
    "said", [{"interval_s": 1e300}, {"interval_s": 0}, {"interval_s": -1}, {"bundle": {"digest": "../../etc"}}]
)
def test_orders_that_would_stop_an_agent_are_none(said: dict[str, Any]) -> None:
    if "bundle" in said:
        said = {"bundle": {"name": "net", "target": "t", "size_bytes": 1, **said["bundle"]}}
    with pytest.raises(ValidationError):
        Desired.model_validate({"generation": 1, **said})
