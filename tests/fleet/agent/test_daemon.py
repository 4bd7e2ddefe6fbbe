"""The loop: long polls, jitter, back-off, windows, and a fleet that is down, flaps, or answers nonsense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekit.errors import (
    AuthenticationError,
    EdgekitError,
    OverloadedError,
    SignatureError,
    UnreachableError,
    UsageError,
)
from edgekit.fleet.agent.daemon import LEAST_PAUSE_S, LONGEST_RETRY_S, Daemon
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import facts
from edgekit.fleet.agent.orders import read_orders
from edgekit.fleet.agent.reached import read_reached
from edgekit.fleet.agent.ring import Ring
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import BundleOrder, Desired, PlanOrder, Sync
from edgekit.fleet.protocol.windows import Window
from tests.fleet.agent.fleets import LocalFleet, trial
from tests.fleet.conftest import SettableClock

WINDOW = Window(sequence=0, started_at=1e9, seconds=60.0, digest="a" * 64)


def order(digest: str) -> BundleOrder:
    return BundleOrder(digest=digest, name="net", target=f"{digest}/index.json", size_bytes=1)


class Run:
    """A daemon in virtual time: `pauses` are those it made; it is stopped after `most` of them."""

    def __init__(
        self, home: Home, fleet: LocalFleet, clock: SettableClock, wait_s: float = 25.0, most: int = 5
    ) -> None:
        self.home, self.fleet, self.clock, self.most = home, fleet, clock, most
        self.pauses: list[float] = []
        self.errors: list[EdgekitError | None] = []
        self.connects = 0
        self.held_s = wait_s  # how long the fleet holds a question
        self.updater = Updater(home, "device", NoRuntime(), trial, now=clock)
        self.ring = Ring(home)
        fleet.hook = self._asked
        self.daemon = Daemon(
            home,
            self._connect,
            self.updater,
            facts("device"),
            self.ring,
            wait_s,
            choose=lambda low, high: high,
            wait=self._pause,
            now=clock,
        )

    def _connect(self) -> AgentClient:
        self.connects += 1
        return self.fleet

    def _asked(self, what: str) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)
        if len(self.pauses) >= self.most:
            self.daemon.stop()

    def run(self) -> list[Sync]:
        answer = self.fleet.sync

        def held(sync: Sync) -> Desired:
            desired = answer(sync)
            if sync.known == desired.generation:
                self.clock.advance(min(sync.wait_s, self.held_s))
            return desired

        self.fleet.sync = held  # type: ignore[method-assign]
        self.daemon.run()
        return self.fleet.syncs


@pytest.fixture
def fleet(bundles: dict[str, Path]) -> LocalFleet:
    return LocalFleet(*bundles.values())


@pytest.fixture
def start(home: Home, fleet: LocalFleet, clock: SettableClock) -> Callable[..., Run]:
    return lambda **settings: Run(home, fleet, clock, **settings)


def test_questions_that_wait_follow_one_another_and_facts_are_told_once(start: Callable[..., Run]) -> None:
    run = start()
    syncs = run.run()
    assert [sync.wait_s for sync in syncs] == [0.0, 25.0, 25.0, 25.0, 25.0]
    assert [sync.facts is not None for sync in syncs] == [True, False, False, False, False]
    assert [sync.known for sync in syncs] == [0, 1, 1, 1, 1]
    assert set(run.pauses) == {LEAST_PAUSE_S}


def test_whether_the_fleet_is_reached_is_written_down_where_it_changes(start: Callable[..., Run]) -> None:
    run = start(most=4)
    run.errors = [None, UnreachableError("away"), UnreachableError("away")]
    told: list[str] = []
    replace = run.home.replace

    def seen(name: str, data: bytes, mode: int = 0o600) -> None:
        replace(name, data, mode)
        if name == "reached.json" and (reached := read_reached(run.home.path)) is not None:
            told.append(reached.trouble)

    run.home.replace = seen  # type: ignore[method-assign]
    run.run()
    assert told == ["", "away", ""]


def test_what_a_person_has_to_mend_is_told_with_the_fix(
    start: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = start(most=2)
    run.errors = [AuthenticationError("this device is not known here", hint="edgekit agent enroll --again")]
    run.run()
    assert "not known here (AuthenticationError; edgekit agent enroll --again); again in" in caplog.text


def test_fleet_that_wants_to_be_asked_rarely_is(start: Callable[..., Run], fleet: LocalFleet) -> None:
    fleet.desired = Desired(generation=1, interval_s=3600)
    run = start()
    run.run()
    assert run.pauses[0] == pytest.approx(1.2 * 3600) and run.pauses[1] == pytest.approx(1.2 * 3600 - 25)


def test_fleet_that_holds_no_question_is_not_asked_at_every_moment(start: Callable[..., Run]) -> None:
    run = start()
    run.held_s = 0.0
    run.run()
    assert run.pauses[1:] == [pytest.approx(36.0)] * 4


def test_without_waiting_the_interval_is_kept_with_jitter(start: Callable[..., Run]) -> None:
    run = start(wait_s=0.0)
    run.run()
    assert run.pauses == [pytest.approx(36.0)] * 5


def test_update_is_followed_and_told_at_once(
    start: Callable[..., Run], fleet: LocalFleet, digests: dict[str, str]
) -> None:
    fleet.desired = Desired(generation=4, bundle=order(digests["old"]))
    run = start(most=2)
    syncs = run.run()
    assert [sync.slot.phase for sync in syncs] == ["idle", "downloading", "checking", "switching", "idle"]
    assert syncs[-1].slot.running == digests["old"] and syncs[-1].wait_s == 0.0 and syncs[-1].known == 4
    assert run.updater.state.heard


def test_pauses_grow_while_the_fleet_is_down_and_start_anew_once_it_is_heard(
    start: Callable[..., Run], fleet: LocalFleet
) -> None:
    run = start(most=14)
    run.errors = [UnreachableError("down")] * 12
    run.run()
    assert run.pauses[:5] == [1.0, 2.0, 4.0, 8.0, 16.0] and max(run.pauses) == LONGEST_RETRY_S
    assert run.pauses[12] == LEAST_PAUSE_S


def test_fleet_that_says_when_is_asked_then(start: Callable[..., Run]) -> None:
    run = start(most=3)
    busy = OverloadedError("too many")
    busy.retry_after_s = 90.0
    patient = OverloadedError("too many")
    patient.retry_after_s = 1e9
    run.errors = [busy, patient]
    run.run()
    assert run.pauses[0] == pytest.approx(108.0)
    assert run.pauses[1] == pytest.approx(1.2 * LONGEST_RETRY_S)


def test_flapping_network_gets_the_update_there_in_the_end(
    start: Callable[..., Run], fleet: LocalFleet, digests: dict[str, str]
) -> None:
    fleet.desired = Desired(generation=1, bundle=order(digests["old"]))
    fleet.chunk = 300
    run = start(most=60)
    pause = run.daemon._wait

    def flap(seconds: float) -> None:
        fleet.cut_after = 1000
        pause(seconds)
        if run.updater.state.heard and run.updater.state.active:
            run.daemon.stop()

    run.daemon._wait = flap
    fleet.cut_after = 500
    run.errors = [None, None, UnreachableError("flap"), None, UnreachableError("flap")]
    run.run()
    assert run.updater.state.active == digests["old"]


def test_new_bundle_that_cuts_the_device_off_is_left(
    start: Callable[..., Run], fleet: LocalFleet, digests: dict[str, str]
) -> None:
    fleet.desired = Desired(generation=1, bundle=order(digests["old"]))
    run = start(most=40)
    run.updater.start()
    run.updater.follow(fleet, digests["old"])
    run.updater.heard()
    fleet.desired = Desired(generation=2, bundle=order(digests["new"]))
    switched = run.updater._switch

    def cut_off(*arguments: object) -> None:
        switched(*arguments)  # type: ignore[arg-type]
        fleet.is_down = True

    run.updater._switch = cut_off  # type: ignore[method-assign]
    run.run()
    assert run.updater.state.active == digests["old"]
    assert "the fleet was not reached within 600 s" in run.updater.state.refused[digests["new"]]


def test_identity_that_cannot_be_used_keeps_nothing_from_running(
    home: Home, fleet: LocalFleet, digests: dict[str, str], clock: SettableClock, start: Callable[..., Run]
) -> None:
    updater = Updater(home, "device", NoRuntime(), trial)
    updater.start()
    updater.follow(fleet, digests["old"])
    run = start(most=4)

    def damaged() -> AgentClient:
        raise UsageError("identity.json cannot be read")

    run.daemon._connect = damaged
    run.run()
    assert run.updater.slot.running == digests["old"] and run.pauses == [1.0, 2.0, 4.0, 8.0]


def test_orders_that_cannot_be_followed_are_tried_again_and_told(
    start: Callable[..., Run], fleet: LocalFleet, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.desired = Desired(generation=1, bundle=order(digests["old"]))
    run = start(most=3)

    def unsigned(digest: str) -> object:
        raise SignatureError("the fleet's signed metadata does not name it")

    monkeypatch.setattr(fleet, "index", unsigned)
    syncs = [sync for sync in run.run() if sync.slot.phase in ("idle", "failed")]
    assert [sync.slot.phase for sync in syncs] == ["idle", "failed", "failed"]
    assert "does not name it" in syncs[-1].slot.reason and syncs[-1].known == 0
    assert run.pauses == [1.0, 2.0, 4.0] and run.connects == 3


def test_windows_go_in_order_and_are_let_go_only_when_they_were_taken(
    start: Callable[..., Run], fleet: LocalFleet
) -> None:
    run = start(most=4)
    for _ in range(150):
        run.ring.append(WINDOW)
    taken: list[Sequence[int]] = []
    answer = fleet.sync

    def take(sync: Sync) -> Desired:
        answer(sync)
        taken.append([window.sequence for window in sync.windows])
        last = sync.windows[-1].sequence if sync.windows and len(taken) > 1 else -1
        return fleet.desired.model_copy(update={"taken": last})

    fleet.sync = take  # type: ignore[method-assign]
    run.run()
    assert taken == [list(range(64)), list(range(64)), list(range(64, 128)), list(range(128, 150))]
    assert run.ring.oldest(10) == []


@pytest.mark.parametrize(("clock_s", "dated"), [(1e9, 1.8e9), (3e9, 0.0), (1.8e9 - 20, 1e9), (1.8e9 + 20, 1e9)])
def test_windows_of_a_wrong_clock_are_dated_by_the_fleets(
    start: Callable[..., Run], fleet: LocalFleet, clock_s: float, dated: float
) -> None:
    run = start(most=2)
    run.daemon._wall = lambda: clock_s
    run.ring.append(WINDOW)
    fleet.desired = Desired(generation=1, now=1.8e9)
    syncs = run.run()
    assert [sync.windows[0].started_at for sync in syncs] == [1e9, dated]
    assert run.ring.oldest(1)[0].started_at == 1e9, "as it was seen"


def test_plan_and_share_reach_applications(start: Callable[..., Run], fleet: LocalFleet, home: Home) -> None:
    plan = PlanOrder(digest="a" * 64, variant="split", rate=1)
    fleet.desired = Desired(generation=3, plan=plan, compare_share=0.25)
    start(most=1).run()
    assert (read_orders(home.path).variant, read_orders(home.path).compare_share) == ("split", 0.25)
