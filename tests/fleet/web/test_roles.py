from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.fleet.protocol.people import Role
from edgekit.fleet.service import FleetService
from tests.fleet.web.scene import Visitor, enroll, group

OPERATORS = ("/groups", "/groups/pi", "/groups/pi/remove", "/devices/pi-1/labels", "/devices/pi-1/replan",
             "/devices/pi-1/revoke", "/devices/pi-1/reinstate", "/devices/pi-1/remove", "/invitations",
             f"/invitations/{'0' * 32}/withdraw", f"/bundles/{'0' * 64}/remove")  # fmt: skip
ADMINS = ("/people", "/people/admin/remove")
FIELDS = {"name": "new", "role": "admin", "selector": "board=rpi4", "labels": "board=rpi5"}


@pytest.fixture
def scene(service: FleetService, token: str) -> None:
    enroll(service, "pi-1", board="rpi4")
    group(service)


@pytest.mark.usefixtures("scene")
def test_a_viewer_reads_everything_and_changes_nothing(
    somebody: Callable[[Role], Visitor], service: FleetService
) -> None:
    viewer = somebody("viewer")
    word, before = viewer.word(), service.core.events().items
    for path in (
        "/",
        "/groups",
        "/groups/pi",
        "/devices",
        "/devices/pi-1",
        "/findings",
        "/rollouts",
        "/bundles",
        "/audit",
    ):
        page = viewer.get(path)
        assert page.status_code == 200 and page.text.count('method="post"') == 1, path  # to sign out
        assert "Invitations" not in page.text and "People" not in page.text
    for path in ("/rollouts/new", "/invitations", "/people"):
        assert viewer.get(path).status_code == 403
    for path in (*OPERATORS, *ADMINS):
        assert viewer.post(path, FIELDS, word=word).status_code == 403, path
    assert service.core.events().items == before


@pytest.mark.usefixtures("scene")
def test_an_operator_changes_the_fleet_but_not_who_may(
    somebody: Callable[[Role], Visitor], service: FleetService
) -> None:
    operator = somebody("operator")
    for path in ADMINS:
        assert operator.post(path, FIELDS).status_code == 403
    assert operator.get("/people").status_code == 403 and "People" not in operator.get("/").text
    assert operator.post("/devices/pi-1/labels", FIELDS).status_code == 303
    assert service.devices.get("pi-1").labels == {"board": "rpi5"}


def test_a_role_that_is_taken_away_is_gone_at_the_next_page(
    somebody: Callable[[Role], Visitor], service: FleetService
) -> None:
    from sqlalchemy import update

    from edgekit.fleet.store.tables import Person

    operator = somebody("operator")
    assert operator.get("/invitations").status_code == 200
    with service.database.write() as session:
        session.execute(update(Person).where(Person.name == "the-operator").values(role="viewer"))
    assert operator.get("/invitations").status_code == 403
