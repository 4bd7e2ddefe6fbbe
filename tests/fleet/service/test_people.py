"""People: who may do what, by tokens of which only hashes are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from edgekit.errors import AbsentError, AuthenticationError, ConflictError, ForbiddenError
from edgekit.fleet.protocol.people import PersonOrder, Role
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Event, Person
from tests.fleet.acting import ADMIN
from tests.fleet.conftest import SettableClock


def make(fleet: FleetService, name: str, role: Role = "viewer", valid_s: float | None = None) -> str:
    return fleet.people.make(ADMIN, PersonOrder(name=name, role=role, valid_s=valid_s)).token


def test_the_first_token_is_told_once(fleet: FleetService) -> None:
    token = fleet.people.found()
    assert token is not None and fleet.people.identify(token) == Actor("admin", "admin")
    assert fleet.people.found() is None


def test_workers_that_start_at_once_make_one_first_admin(fleet: FleetService) -> None:
    with ThreadPoolExecutor(6) as threads:
        found = [token for token in threads.map(lambda _: fleet.people.found(), range(6)) if token]
    assert len(found) == 1 and len(fleet.people.all()) == 1


def test_a_token_leads_to_its_person_and_no_other_does(fleet: FleetService) -> None:
    token = make(fleet, "bob", "operator")
    assert fleet.people.identify(token) == Actor("bob", "operator")
    for other in ("", "ekp_", token[:-1], token + "x", token.swapcase()):
        with pytest.raises(AuthenticationError):
            fleet.people.identify(other)


def test_no_token_is_kept_or_told_again(fleet: FleetService) -> None:
    token = make(fleet, "bob")
    with fleet.database.read() as session:
        row = session.scalars(select(Person)).one()
        said = [str(event.detail) + event.subject for event in session.scalars(select(Event))]
    assert token not in str(vars(row)) and not any(token in line for line in said)


def test_a_token_ends(fleet: FleetService, clock: SettableClock) -> None:
    token = make(fleet, "bob", valid_s=60.0)
    clock.advance(59.0)
    assert fleet.people.identify(token).name == "bob"
    clock.advance(1.0)
    with pytest.raises(AuthenticationError, match="ended"):
        fleet.people.identify(token)


def test_when_somebody_was_last_seen_is_written_once_a_minute(fleet: FleetService, clock: SettableClock) -> None:
    token = make(fleet, "bob")
    seen = []
    for seconds in (0.0, 30.0, 31.0):
        clock.advance(seconds)
        fleet.people.identify(token)
        seen.append(fleet.people.all()[0].last_seen_at)
    assert seen == [clock() - 61.0, clock() - 61.0, clock()]


def test_a_name_is_taken_once(fleet: FleetService) -> None:
    first = make(fleet, "bob")
    with pytest.raises(ConflictError, match="there is a person bob"):
        make(fleet, "bob", "admin")
    assert fleet.people.identify(first).role == "viewer"


def test_a_removed_person_is_out_and_the_last_admin_stays(fleet: FleetService) -> None:
    make(fleet, "root", "admin")
    token = make(fleet, "bob")
    fleet.people.remove(ADMIN, "bob")
    with pytest.raises(AuthenticationError):
        fleet.people.identify(token)
    with pytest.raises(AbsentError):
        fleet.people.remove(ADMIN, "bob")
    with pytest.raises(ConflictError, match="last admin"):
        fleet.people.remove(ADMIN, "root")


def test_two_admins_that_remove_each_other_at_once_leave_one(fleet: FleetService) -> None:
    for name in ("one", "two"):
        make(fleet, name, "admin")

    def remove(name: str) -> bool:
        try:
            fleet.people.remove(ADMIN, name)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(remove, ("one", "two"))) == 1
    assert len(fleet.people.all()) == 1


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_only_admins_change_people(fleet: FleetService, role: Role) -> None:
    actor = Actor("bob", role)
    with pytest.raises(ForbiddenError, match="wants an admin"):
        fleet.people.make(actor, PersonOrder(name="eve", role="viewer"))
    with pytest.raises(ForbiddenError):
        fleet.people.remove(actor, "bob")
    assert fleet.people.all() == ()


def test_everything_is_in_the_audit_log(fleet: FleetService) -> None:
    make(fleet, "bob", "operator")
    fleet.people.remove(ADMIN, "bob")
    told = [(one.actor, one.action, one.subject) for one in fleet.core.events(subject="bob").items]
    assert told == [("ada", "person.remove", "bob"), ("ada", "person.add", "bob")]


def test_the_audit_log_is_read_by_pages(fleet: FleetService) -> None:
    for number in range(5):
        make(fleet, f"n{number}")
    pages, after = [], None
    while True:
        page = fleet.core.events(after, limit=2)
        pages += [one.id for one in page.items]
        after = page.next
        if after is None:
            break
    assert pages == sorted(pages, reverse=True) and len(pages) == len(set(pages)) >= 5


def test_the_last_admin_whose_token_counts_stays(fleet: FleetService, clock: SettableClock) -> None:
    fleet.people.found()
    fleet.people.make(ADMIN, PersonOrder(name="brief", role="admin", valid_s=10))
    clock.advance(11)
    with pytest.raises(ConflictError, match="last admin"):
        fleet.people.remove(ADMIN, "admin")
    fleet.people.remove(ADMIN, "brief")
