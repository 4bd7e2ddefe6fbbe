from __future__ import annotations

from typing import Any

import httpx
import pytest

from edgekit.errors import AuthenticationError, OverloadedError
from edgekit.fleet.client import AgentClient, FleetClient
from edgekit.fleet.protocol.agents import Enrolment
from edgekit.fleet.server import guessing
from edgekit.fleet.server.asking import TLS
from edgekit.fleet.server.guessing import A_SECOND, AT_ONCE, MOST_ADDRESSES, Guesses, SlowGuessing, address_of
from tests.fleet.acting import facts
from tests.fleet.conftest import SettableClock

WRONG = "ekp_" + "x" * 43


class Wire:
    """One address's requests to an application that refuses every token but one."""

    def __init__(self, clock: SettableClock) -> None:
        self.looked_up = 0
        self.app = SlowGuessing(self._app, Guesses(clock))

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.looked_up += 1
        right = (b"authorization", b"Bearer right") in scope["headers"] or scope["path"] == "/v1/health"
        await send({"type": "http.response.start", "status": 200 if right else 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(
        self, token: str = "wrong", address: str = "192.0.2.1", path: str = "/v1/devices", **others: Any
    ) -> tuple[int, int]:
        """(status, Retry-After)."""
        sent: list[dict[str, Any]] = []
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": (address, 1), **others}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, None, send)
        headers_sent = dict(sent[0]["headers"])
        return sent[0]["status"], int(headers_sent.get(b"retry-after", b"0"))


@pytest.fixture
def wire(clock: SettableClock) -> Wire:
    return Wire(clock)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def wear_out(wire: Wire, **others: Any) -> None:
    for _ in range(int(AT_ONCE)):
        assert (await wire.ask(**others))[0] == 401


@pytest.mark.anyio
async def test_guessing_becomes_slow_and_is_not_looked_up(wire: Wire, clock: SettableClock) -> None:
    await wear_out(wire)
    looked_up = wire.looked_up
    status, retry_after_s = await wire.ask()
    assert (status, wire.looked_up) == (429, looked_up)
    clock.advance(retry_after_s)
    assert (await wire.ask())[0] == 401
    found = 0
    for _ in range(600):  # five minutes of it
        clock.advance(0.5)
        found += (await wire.ask())[0] == 401
    assert found <= 300 * A_SECOND + 1


@pytest.mark.anyio
async def test_a_right_token_counts_again_after_the_wait(wire: Wire, clock: SettableClock) -> None:
    await wear_out(wire)
    status, retry_after_s = await wire.ask("right")
    assert status == 429
    clock.advance(retry_after_s)
    for _ in range(100):
        assert (await wire.ask("right"))[0] == 200


@pytest.mark.anyio
async def test_right_tokens_spend_nothing(wire: Wire) -> None:
    for _ in range(1000):
        assert (await wire.ask("right"))[0] == 200


@pytest.mark.anyio
async def test_other_addresses_and_what_shows_no_secret_pass(wire: Wire) -> None:
    await wear_out(wire)
    assert (await wire.ask(address="192.0.2.2"))[0] == 401
    assert (await wire.ask("", path="/v1/health"))[0] == 200
    proven = {TLS: {"client_serial": "ab", "client_trouble": ""}}
    assert (await wire.ask("right", extensions=proven))[0] == 200


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/enroll", "/sign-in"])
async def test_secrets_in_forms_count_too(wire: Wire, path: str) -> None:
    await wear_out(wire, token="", path=path)
    assert (await wire.ask("", path=path))[0] == 429


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("testclient", "testclient"),
    ],
)
def test_a_household_of_ipv6_is_one_address(host: str, found: str) -> None:
    assert address_of({"client": (host, 1)}) == found


def test_memory_is_bounded(clock: SettableClock) -> None:
    guesses = Guesses(clock)
    for number in range(MOST_ADDRESSES + 500):
        guesses.wrong(str(number))
    assert len(guesses._spent) == MOST_ADDRESSES


def test_a_real_service_slows_people_and_devices_down(url: str, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "A_SECOND", 1e-6)
    request = Enrolment(token="eki_wrong", name="pi", request="none", facts=facts())
    agent = AgentClient(url)
    refused = 0
    with FleetClient(url, WRONG) as person:
        for _ in range(int(AT_ONCE)):
            ask = person.people if refused % 2 else lambda: agent.enroll(request)
            with pytest.raises(AuthenticationError):
                ask()
            refused += 1
        with pytest.raises(OverloadedError, match="too many tokens") as caught:
            person.people()
        assert caught.value.retry_after_s > 0
        with pytest.raises(OverloadedError):
            agent.enroll(request)
    agent.close()
    assert httpx.get(f"{url}/v1/health", trust_env=False, timeout=30).status_code == 200


def test_callers_over_ipv4_are_told_apart_on_a_socket_for_both() -> None:
    assert address_of({"client": ("::ffff:192.0.2.1", 1)}) == address_of({"client": ("192.0.2.1", 2)}) == "192.0.2.1"
    assert address_of({"client": ("2001:db8::1", 1)}) == address_of({"client": ("2001:db8::2", 1)})
    assert address_of({"client": ("2001:db8::1", 1)}) != address_of({"client": ("2001:db8:0:1::1", 1)})
