from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from edgekit.errors import AuthenticationError
from edgekit.fleet.protocol.people import PersonOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.service.sign_ins import LASTS_S
from edgekit.fleet.store.tables import Person, SignIn
from edgekit.fleet.trust.tokens import hash_token, new_token
from tests.fleet.conftest import SettableClock


@pytest.fixture
def token(fleet: FleetService, admin: Actor) -> str:
    fleet.people.found()
    return fleet.people.make(admin, PersonOrder(name="bob", role="operator")).token


def test_a_sign_in_says_who_it_is(fleet: FleetService, token: str) -> None:
    assert fleet.sign_ins.identify(fleet.sign_ins.begin(token)) == Actor("bob", "operator")
    for wrong in ("", "x" * 43, token):
        with pytest.raises(AuthenticationError):
            fleet.sign_ins.identify(wrong)
    with pytest.raises(AuthenticationError):
        fleet.sign_ins.begin(token + "x")


def test_a_sign_in_ends_with_its_token(fleet: FleetService, token: str, clock: SettableClock) -> None:
    key = fleet.sign_ins.begin(token)
    with fleet.database.write() as session:
        session.execute(update(Person).where(Person.name == "bob").values(ends_at=clock() + 60))
    assert fleet.sign_ins.identify(key).name == "bob"
    clock.advance(61)
    with pytest.raises(AuthenticationError):
        fleet.sign_ins.identify(key)


def test_a_sign_in_ends_when_the_token_is_another(fleet: FleetService, token: str) -> None:
    key = fleet.sign_ins.begin(token)
    with fleet.database.write() as session:
        session.execute(update(Person).where(Person.name == "bob").values(token_hash=hash_token(new_token("person"))))
    with pytest.raises(AuthenticationError):
        fleet.sign_ins.identify(key)


def test_sign_ins_that_are_over_are_cleared_away(fleet: FleetService, token: str, clock: SettableClock) -> None:
    for _ in range(3):
        fleet.sign_ins.begin(token)
    clock.advance(LASTS_S + 1)
    fleet.sign_ins.begin(token)
    with fleet.database.read() as session:
        assert session.scalar(select(func.count()).select_from(SignIn)) == 1


def test_ending_is_noted_and_ending_twice_changes_nothing(fleet: FleetService, token: str) -> None:
    key = fleet.sign_ins.begin(token)
    for _ in range(2):
        fleet.sign_ins.end(key)
    actions = [one.action for one in fleet.core.events(None, 10, "bob").items]
    assert actions.count("page.sign-out") == 1 and actions.count("page.sign-in") == 1
