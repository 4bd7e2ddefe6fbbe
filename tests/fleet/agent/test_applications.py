"""An application that follows its agent: exchanged bundles, plans, telemetry, comparison with the full model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BundleError, InputError, SessionError
from edgekit.fleet.agent.applications import Followed, follow
from edgekit.fleet.agent.comparison import agree
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.orders import Orders, read_orders, write_orders
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.spool import read_spool
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.protocol.agents import Desired, PlanOrder
from edgekit.runtimes.coordinator.policies import Auto
from edgekit.runtimes.session import Feeds
from tests.fleet.agent.fleets import LocalFleet, trial
from tests.fleet.agent.live import until
from tests.fleet.bundles import GAIN, WIDTH

X = {"x": np.full((1, WIDTH), 0.5, np.float32)}


def truth(scale: float) -> np.ndarray:
    scores: np.ndarray = (X["x"] * np.float32(scale)) @ GAIN
    return scores


@pytest.fixture
def fleet(bundles: dict[str, Path]) -> LocalFleet:
    return LocalFleet(*bundles.values())


@pytest.fixture
def updater(home: Home, fleet: LocalFleet, digests: dict[str, str]) -> Updater:
    updater = Updater(home, "device", NoRuntime(), trial)
    updater.start()
    updater.follow(fleet, digests["old"])
    return updater


def test_answers_come_from_the_bundle_that_counts_and_are_told_of(
    home: Home, updater: Updater, digests: dict[str, str]
) -> None:
    with follow(home.path) as session:
        for _ in range(3):
            np.testing.assert_allclose(session.run(X)["scores"], truth(2.0), rtol=1e-5)
        with pytest.raises(InputError):
            session.ask({"x": np.zeros((1, 2), np.float32)})
    tallies, _ = read_spool(home.spool)
    tally = tallies[digests["old"]]
    assert (tally.answered, tally.errors, sum(tally.latency.values())) == (3, 1, 3)
    assert tally.plans == {"local": 3} and sum(tally.inputs.values()) == 3


def test_switch_is_followed_while_requests_go_on(
    home: Home, updater: Updater, fleet: LocalFleet, digests: dict[str, str]
) -> None:
    failures: list[Exception] = []
    stop = threading.Event()
    with follow(home.path, look_s=0.02) as session:

        def ask() -> None:
            while not stop.is_set():
                try:
                    found = session.run(X)["scores"]
                    assert any(np.allclose(found, truth(scale), rtol=1e-5) for scale in (2.0, 3.0))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        updater.follow(fleet, digests["new"])
        until(lambda: session.digest == digests["new"], "the application follows")
        np.testing.assert_allclose(session.run(X)["scores"], truth(3.0), rtol=1e-5)
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not failures
    assert set(read_spool(home.spool)[0]) == {digests["old"], digests["new"]}


def test_application_that_starts_before_there_is_a_bundle_is_told(home: Home) -> None:
    with pytest.raises(BundleError, match="leads to no bundle yet"):
        follow(home.path)


def test_application_goes_on_while_the_fleet_wants_nothing_and_ends_once(home: Home, updater: Updater) -> None:
    session = follow(home.path, look_s=0.0)
    updater.home.point(None)
    assert session.ask(X).outputs
    session.close()
    session.close()
    with pytest.raises(SessionError):
        session.ask(X)


class FullModel:
    def __init__(self, scale: float) -> None:
        self.scale, self.asked, self.closed = scale, 0, False

    def run(self, feeds: Feeds) -> Mapping[str, np.ndarray]:
        self.asked += 1
        return {"scores": (feeds["x"] * np.float32(self.scale)) @ GAIN}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("scale", "agreed"), [(2.0, True), (-2.0, False)])
def test_share_of_answers_is_compared_where_the_fleet_asks_and_the_owner_consents(
    home: Home, updater: Updater, digests: dict[str, str], scale: float, agreed: bool
) -> None:
    write_orders(home, Desired(generation=1, compare_share=0.5))
    full = FullModel(scale)
    rolls = iter([0.4, 0.6, 0.49, 0.9])
    with Followed(home.path, lambda bundle: full, choose=lambda: next(rolls)) as session:
        for _ in range(4):
            session.ask(X)
            until(lambda: session._held.comparison is None or session._held.comparison._waiting.empty(), "compared")
    tally = read_spool(home.spool)[0][digests["old"]]
    assert (tally.compared, tally.agreed) == (2, 2 * agreed)
    assert full.asked == 2 and full.closed


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_is_compared_without_both(home: Home, updater: Updater, digests: dict[str, str], share: float) -> None:
    write_orders(home, Desired(generation=1, compare_share=share))
    compare: Callable[[Path], FullModel] | None = (lambda bundle: FullModel(2.0)) if share == 0 else None
    with follow(home.path, compare) as session:
        session.ask(X)
    assert read_spool(home.spool)[0][digests["old"]].compared == 0


def test_answers_agree_by_class_or_by_direction() -> None:
    one = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert agree(one, one * 2, True)
    assert not agree(one, one[::-1], True)
    assert agree(one, one * 3, False) and not agree(one, -one, False)
    assert not agree(one, one[:1], True) and not agree(one * np.nan, one, True)
    assert agree(np.zeros(3), np.zeros(3), False) and not agree(np.zeros(3), np.ones(3), False)


def test_plan_is_written_for_applications_and_only_where_it_changes(home: Home, digests: dict[str, str]) -> None:
    plan = PlanOrder(digest=digests["old"], variant="split", rate=2, why="the link is slow")
    write_orders(home, Desired(generation=7, plan=plan, compare_share=0.01))
    assert read_orders(home.path) == Orders(
        generation=7, digest=digests["old"], variant="split", rate=2, why="the link is slow", compare_share=0.01
    )
    before = (home.path / "plan.json").stat().st_ino
    write_orders(home, Desired(generation=7, plan=plan, compare_share=0.01))
    assert (home.path / "plan.json").stat().st_ino == before
    (home.path / "plan.json").write_text("{")
    assert read_orders(home.path) == Orders()


def test_plan_is_where_the_coordinator_starts(home: Home, updater: Updater, digests: dict[str, str]) -> None:
    write_orders(home, Desired(generation=1, plan=PlanOrder(digest=digests["old"], variant="local")))
    with follow(home.path) as session:
        policy = session._held.session.coordinator.policy
        assert isinstance(policy, Auto) and policy._suggested == ("local", 0)
        session.ask(X)
        assert policy._suggested is None
    write_orders(home, Desired(generation=2, plan=PlanOrder(digest=digests["new"], variant="local")))
    with follow(home.path) as session:  # a plan for another bundle
        policy = session._held.session.coordinator.policy
        assert isinstance(policy, Auto) and policy._suggested is None
