from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from edgekit.fleet.protocol.people import PersonOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder, RolloutView, Tally
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.service.repeats import ABANDONED_S, Repeats
from tests.fleet.conftest import SettableClock

KEY = {"Idempotency-Key": "one"}
VIEW = RolloutView(
    id="0" * 32,
    bundle="1" * 64,
    name="net",
    group="pi",
    state="paused",
    stage=0,
    stages=("1 of 1 device",),
    tally=Tally(waiting=1),
    reason="paused by ada",
    started_at=1.0,
    started_by="ada",
    stage_at=1.0,
    order=RolloutOrder(bundle="1" * 64, group="pi"),
    version=2,
)


def events(service: FleetService, action: str) -> int:
    return sum(event.action == action for event in service.core.events(limit=500).items)


def test_a_token_is_told_once_and_what_made_it_is_done_once(http: TestClient, served: FleetService) -> None:
    first = http.post("/v1/invitations", json={"uses": 3}, headers=KEY)
    assert first.status_code == 201 and first.json()["token"].startswith("eki_")
    again = http.post("/v1/invitations", json={"uses": 3}, headers=KEY)
    assert again.status_code == 409 and "token was told then" in again.json()["error"]
    assert events(served, "invitation.add") == 1
    with served.database.engine.connect() as connection:
        kept = connection.exec_driver_sql("select body from repeated").scalars().all()
    assert kept == [""]


def test_the_second_request_gets_the_answer_of_the_first(
    http: TestClient, served: FleetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def pause(actor: Actor, key: str) -> RolloutView:
        calls.append(key)
        return VIEW

    monkeypatch.setattr(served.rollouts, "pause", pause)
    first, second = (http.post("/v1/rollouts/latest/pause", headers=KEY) for _ in range(2))
    assert first.status_code == second.status_code == 200 and first.json() == second.json()
    assert first.json()["reason"] == "paused by ada" and calls == ["latest"]
    assert http.post("/v1/rollouts/latest/pause").status_code == 200 and len(calls) == 2


def test_a_request_that_failed_leaves_its_key_free(http: TestClient, served: FleetService) -> None:
    assert http.post("/v1/rollouts/latest/pause", headers=KEY).status_code == 404
    with served.database.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from repeated").scalar_one() == 0


def test_a_key_that_comes_with_something_else_is_refused(http: TestClient) -> None:
    assert http.post("/v1/invitations", json={"uses": 3}, headers=KEY).status_code == 201
    other = http.post("/v1/invitations", json={"uses": 4}, headers=KEY)
    assert other.status_code == 409 and "something else" in other.json()["error"]


def test_the_same_key_of_somebody_else_is_another_one(http: TestClient, served: FleetService) -> None:
    bob = served.people.make(Actor("ada", "admin"), PersonOrder(name="bob", role="operator")).token
    assert http.post("/v1/invitations", json={}, headers=KEY).status_code == 201
    theirs = http.post("/v1/invitations", json={}, headers={**KEY, "Authorization": f"Bearer {bob}"})
    assert theirs.status_code == 201


def test_a_key_that_is_too_long_is_refused(http: TestClient) -> None:
    assert http.post("/v1/invitations", json={}, headers={"Idempotency-Key": "k" * 201}).status_code == 400


def test_of_many_at_once_one_is_done(http: TestClient, served: FleetService) -> None:
    start = threading.Barrier(8)

    def ask(_: int) -> int:
        start.wait(10)
        return http.post("/v1/invitations", json={"uses": 2}, headers=KEY).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(ask, range(8)))
    assert statuses[0] == 201 and set(statuses[1:]) <= {409, 429}
    assert events(served, "invitation.add") == 1


def test_a_claim_is_answered_kept_released_and_given_up(fleet: FleetService, clock: SettableClock) -> None:
    repeats = Repeats(fleet.core)
    assert repeats.claim("k", "f") is None
    unfinished = repeats.claim("k", "f")
    assert unfinished is not None and unfinished.status == 0
    repeats.keep("k", 201, "body")
    done = repeats.claim("k", "f")
    assert done is not None and (done.status, done.body, done.fingerprint) == (201, "body", "f")
    assert repeats.claim("other", "f") is None
    repeats.release("other")
    assert repeats.claim("other", "f") is None
    clock.advance(ABANDONED_S + 1)
    assert repeats.claim("other", "f") is None
    assert repeats.claim("k", "f") is not None


def test_who_is_not_known_writes_nothing(
    http: TestClient, served: FleetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[str] = []
    monkeypatch.setattr(served.repeats, "claim", lambda key, what: claims.append(key))
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer ekp_unknown"}):
        assert http.post("/v1/invitations", json={}, headers={**KEY, **headers}).status_code == 401
    assert claims == []


def test_who_was_removed_hears_no_answer_of_before(
    http: TestClient, served: FleetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.rollouts, "pause", lambda actor, key: VIEW)
    bob = served.people.make(Actor("ada", "admin"), PersonOrder(name="bob", role="operator")).token
    theirs = {**KEY, "Authorization": f"Bearer {bob}"}
    assert http.post("/v1/rollouts/latest/pause", headers=theirs).status_code == 200
    served.people.remove(Actor("ada", "admin"), "bob")
    assert http.post("/v1/rollouts/latest/pause", headers=theirs).status_code == 401
