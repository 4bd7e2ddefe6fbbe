from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from edgekit.fleet.protocol.people import PersonOrder, Role
from edgekit.fleet.service import FleetService
from tests.fleet.acting import ADMIN


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_who_the_people_are_is_told_to_admins_alone(http: TestClient, served: FleetService, role: Role) -> None:
    token = served.people.make(ADMIN, PersonOrder(name="bob", role=role)).token
    theirs = {"Authorization": f"Bearer {token}"}
    assert http.get("/v1/overview", headers=theirs).status_code == 200
    assert http.get("/v1/people", headers=theirs).status_code == 403
    assert http.post("/v1/people", json={"name": "eve", "role": "admin"}, headers=theirs).status_code == 403
    assert http.delete("/v1/people/admin", headers=theirs).status_code == 403
    assert [one["name"] for one in http.get("/v1/people").json()] == ["admin", "bob"]
