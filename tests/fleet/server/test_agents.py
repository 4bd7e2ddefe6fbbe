"""Syncs over HTTP: the door that passes by the framework answers as the route behind it does."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from edgekit.fleet.protocol.people import DeviceChange
from edgekit.fleet.server import agents
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.door import AgentDoor
from edgekit.fleet.server.waiting import Waiters
from edgekit.fleet.service import FleetService, ingest
from tests.fleet.acting import ADMIN, enroll, says, window

SYNC = "/v1/agent/sync"
OLD = "a" * 64


@pytest.fixture
def device_token(served: FleetService) -> str:
    return enroll(served, "pi-1").token


@pytest.fixture(params=["door", "route"])
def agent(request: pytest.FixtureRequest, served: FleetService, device_token: str) -> Any:
    app = create_app(served)
    held = {"Authorization": f"Bearer {device_token}"}
    with TestClient(AgentDoor(app) if request.param == "door" else app, "http://127.0.0.1", headers=held) as client:
        yield client


def test_a_sync_is_stored_and_answered(agent: TestClient) -> None:
    answer = agent.post(SYNC, content=says(OLD, window(0, OLD, 1e9)).model_dump_json())
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert answer.json()["taken"] == 0 and answer.json()["generation"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b'{"unknown": 1}', 422),
        (b'{"wait_s": 1e9}', 422),
        (b'{"slot": {"reason": "\\ud800"}}', 422),
        (b'{"known": NaN}', 422),
        (b'{"known":' + b"[" * 100_000, 422),
        (b" " * (agents.MAX_BODY_BYTES + 1), 413),
    ],
    ids=["empty", "broken", "list", "unknown", "too-long-a-wait", "surrogate", "nan", "deep", "too-large"],
)
def test_a_body_that_is_no_sync_is_refused_and_told_why(agent: TestClient, body: bytes, status: int) -> None:
    answer = agent.post(SYNC, content=body)
    assert answer.status_code == status
    assert answer.json()["error"] and answer.json()["kind"]


def test_a_token_that_does_not_count_is_refused(agent: TestClient) -> None:
    for header in ("", "Bearer ", "Bearer ekd_wrong", "Basic ekd_wrong", "Bearer ekp_wrong"):
        assert agent.post(SYNC, content=b"{}", headers={"Authorization": header}).status_code == 401


def test_where_too_much_waits_agents_are_told_to_come_later(agent: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_WAITING", 0)
    answer = agent.post(SYNC, content=b"{}")
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0


def test_a_failure_that_nobody_thought_of_is_no_traceback(
    served: FleetService, device_token: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(agents, "answer_sync", fail)
    held = {"Authorization": f"Bearer {device_token}"}
    with TestClient(AgentDoor(create_app(served)), "http://127.0.0.1", headers=held) as client:
        answer = client.post(SYNC, content=b"{}")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "secret of the inside" in caplog.text


def test_a_call_that_is_held_is_answered_when_the_orders_change(
    served: FleetService, url: str, device_token: str
) -> None:
    held = {"Authorization": f"Bearer {device_token}"}
    answers: list[dict[str, Any]] = []

    def wait() -> None:
        body = json.dumps({"known": 1, "wait_s": 30})
        while not answers or answers[-1]["generation"] == 1:  # the news of its enrolment may wake it first
            answers.append(httpx.post(url + SYNC, content=body, headers=held, timeout=40, trust_env=False).json())

    thread = threading.Thread(target=wait)
    thread.start()
    for _ in range(500):
        if served.devices.intake.counts.calls:
            break
        time.sleep(0.01)
    served.devices.change(ADMIN, "pi-1", DeviceChange(labels={"site": "lab"}))
    thread.join(20)
    assert answers and answers[-1]["labels"] == {"site": "lab"} and answers[-1]["generation"] == 2
    assert len(answers) <= 2, "what is held is held until there is news"


def test_one_waits_as_a_device_and_the_one_before_is_let_go() -> None:
    async def play() -> tuple[bool, bool, int]:
        waiters = Waiters()
        first = waiters.expect("pi")
        early = asyncio.create_task(waiters.wait("pi", first, 10))
        await asyncio.sleep(0)
        second = waiters.expect("pi")
        late = asyncio.create_task(waiters.wait("pi", second, 0.01))
        return await early, await late, len(waiters)

    assert asyncio.run(play()) == (True, False, 0)


def test_metrics_name_no_device_and_want_a_token(served: FleetService, http: TestClient) -> None:
    enrolled = enroll(served, "pi-secret")
    served.devices.sync(enrolled.device, says(OLD, window(0, OLD, 1e9)))
    text = http.get("/metrics").text
    assert 'edgekit_fleet_devices{connected="yes",phase="idle",standing="active"} 1.0' in text
    assert "edgekit_fleet_intake_windows_total 1.0" in text
    assert f'edgekit_fleet_running{{digest="{OLD}"}} 1.0' in text
    assert 'edgekit_fleet_findings{kind="suspect"} 0.0' in text
    assert "pi-secret" not in text and enrolled.device not in text
    assert http.get("/metrics", headers={"Authorization": "Bearer ekp_wrong"}).status_code == 401


def test_metrics_are_told_though_the_database_is_down(
    served: FleetService, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.errors import StoreError

    state = http.app.state.metrics  # type: ignore[attr-defined]
    monkeypatch.setattr(served.database, "read", lambda: (_ for _ in ()).throw(StoreError("down")))
    assert "edgekit_fleet_database_up 0.0" in state.render().decode()


def test_telemetry_is_read_over_http_and_exported_as_it_is_read(served: FleetService, http: TestClient) -> None:
    device = enroll(served, "pi-1").device
    now = time.time()
    served.devices.sync(device, says(OLD, *(window(number, OLD, now - 600 + number) for number in range(5))))
    view = http.get("/v1/telemetry", params={"device": "pi-1", "step_s": 3600}).json()
    assert sum(one["answered"] for one in view["spans"]) == 50
    lines = http.get("/v1/telemetry/windows").text.splitlines()
    assert len(lines) == 6 and lines[0].startswith("device,sequence,")
    assert http.get("/v1/telemetry", params={"device": "pi-1", "group": "pi"}).status_code == 400
    assert http.get("/v1/telemetry", params={"since": "nan"}).status_code == 422
    assert http.get("/v1/telemetry", params={"group": "none"}).status_code == 404
