from __future__ import annotations

import http.server
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing

import pytest

from edgekit.errors import AuthenticationError, EdgekitError, RemoteError, UsageError
from edgekit.fleet.client import AgentClient, Connection, problem_of
from edgekit.fleet.client.agents import MOST_BYTES
from edgekit.fleet.protocol.agents import Sync


@pytest.fixture
def endless() -> Iterator[str]:
    """The address of somebody who answers with 200 million spaces; a GET, with as long an error."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._answer(200)

        def do_GET(self) -> None:
            self._answer(500)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.end_headers()
            try:
                for _ in range(200):
                    self.wfile.write(b" " * 1_000_000)
            except OSError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_an_answer_without_an_end_fills_no_agents_memory(endless: str) -> None:
    tracemalloc.start()
    try:
        with closing(AgentClient(endless)) as agent:
            for ask in (lambda: agent.sync(Sync()), lambda: list(agent.metadata("timestamp.json"))):
                with pytest.raises(RemoteError, match=f"more than {MOST_BYTES} bytes"):
                    ask()
        assert tracemalloc.get_traced_memory()[1] < 5 * MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "url",
    ["https://host:abc", "https://[::1", "http://127.0.0.1:99999", "https://h:0", "https://h\x00x", "ftp://h", "h"],
)
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(UsageError, match="no address of a fleet"):
        Connection(url)


@pytest.mark.parametrize("behind", ["\n", "\r\nX: y", " and more", "\u00e9", "\u2028"])
def test_a_token_that_can_be_none_is_refused_and_not_repeated(behind: str) -> None:
    with pytest.raises(UsageError, match="what no token holds") as caught:
        Connection("https://fleet:8080", f"ekp_secret{behind}")
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("body", [b"[" * 200_000, b"{}", b"\xff", b'{"error": "e", "kind": "Path"}'])
def test_whatever_an_error_says_it_is_told_as_ours(body: bytes) -> None:
    found = problem_of(500, body)
    assert isinstance(found, EdgekitError) and "status 500" in found.message


def test_tls_with_a_fleet_that_speaks_none_is_told_with_the_address_to_take(endless: str) -> None:
    agent = AgentClient(endless.replace("http:", "https:"))
    with closing(agent), pytest.raises(AuthenticationError, match="does not speak TLS") as told:
        agent.sync(Sync())
    assert endless in told.value.hint
