from __future__ import annotations

import math

import pytest

from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.service import FleetService, history
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import enroll, say, window

DIGEST = "a" * 64


def test_windows_of_one_device_and_one_time_are_added_up(fleet: FleetService, clock: SettableClock) -> None:
    device, other = enroll(fleet, "pi-1"), enroll(fleet, "pi-2")
    now = clock()
    say(fleet, device, Slot(), *(window(place, now - 600 + 60 * place, DIGEST) for place in range(10)))
    say(fleet, other, Slot(), window(0, now - 60, DIGEST))
    found = fleet.histories.of(device, now - 300, now)
    assert found.windows == 5 and not found.cut
    assert sum(span.seen.answered for span in found.spans) == 500
    assert all(now - 300 <= span.starts_at < span.ends_at <= now for span in found.spans)
    assert fleet.histories.of(device, now, now + 60).spans == ()


def test_of_more_windows_than_are_read_the_newest_are_shown(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_WINDOWS", 4)
    device, now = enroll(fleet, "pi-1"), clock()
    say(fleet, device, Slot(), *(window(place, now - 600 + 60 * place, DIGEST) for place in range(10)))
    found = fleet.histories.of(device, now - 3_600, now)
    assert found.cut and found.windows == 4 and found.since == now - 240
    assert found.spans[-1].starts_at == now - 60


def test_a_span_tells_what_changed_in_it_and_leaves_out_what_nobody_measured() -> None:
    bare = window(1, 10.0, "b" * 64, plan="split").model_copy(update={"link": None})
    found = history.spans_of([window(0, 0.0, DIGEST, plan="local"), bare], 0.0, 600.0)
    assert len(found) == 2 and history.spans_of([], 0.0, 1.0) == ()
    (span,) = history.spans_of([window(0, 0.0, DIGEST, plan="local"), bare], 0.0, 9_600.0)
    assert span.digests == (DIGEST, "b" * 64) and span.plans == ("local", "split")
    assert span.bandwidth_mbps == 12.5 and math.isnan(found[1].bandwidth_mbps)
