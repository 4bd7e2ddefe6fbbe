"""Spans from a node that answers, refuses, keeps none, or is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edgekit.errors import AuthenticationError, NodeError, RemoteError, UnreachableError, UsageError
from edgekit.runtimes.tracing.fetch import NodeAddress, fetch


@contextmanager
def answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_spans_of_an_answer_are_read_and_damaged_ones_counted(make) -> None:
    span = make("infer", 0, 5, None, "edge")
    with answering(200, b'{"spans": [%s, {"name": 1}]}' % span.model_dump_json().encode()) as url:
        reading = fetch(NodeAddress(url))
    assert (reading.spans, reading.damaged) == ((span,), 1)


@pytest.mark.parametrize(
    ("status", "body", "error", "said", "hint"),
    [
        (401, b'{"error": "no token"}', AuthenticationError, "no token", "--token-file"),
        (404, b'{"error": "Not Found"}', RemoteError, "Not Found", "--trace FILE"),
        (500, b"<html>", RemoteError, "HTTP 500", ""),
        (200, b"<html>", UnreachableError, "Expecting value", "REST port"),
        (200, b'{"models": []}', RemoteError, "holds no spans", "REST port"),
        (200, b"[]", RemoteError, "holds no spans", "REST port"),
    ],
)
def test_other_answers_are_errors_that_say_what_to_do(status, body, error, said, hint) -> None:
    with answering(status, body) as url, pytest.raises(error, match=said) as caught:
        fetch(NodeAddress(url))
    assert type(caught.value) is error and hint in caught.value.hint and url in caught.value.message


def test_a_token_follows_no_redirection() -> None:
    with (
        answering(200, b'{"spans": []}') as elsewhere,
        answering(302, b"", {"Location": elsewhere}) as url,
        pytest.raises(RemoteError, match="HTTP 302"),
    ):
        fetch(NodeAddress(url, "secret"))


def test_nothing_that_listens_is_unreachable(free_port: int) -> None:
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{free_port}"):
        fetch(NodeAddress(f"http://127.0.0.1:{free_port}"))


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:8102", "127.0.0.1:8101", "http://", "http://edge:8101/v2/traces"])
def test_another_kind_of_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="node address"):
        NodeAddress(url)


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        NodeAddress("http://edge:8101", "secret")
    NodeAddress("https://edge:8101", "secret")
    NodeAddress("http://127.0.0.1:8101", "secret")


def test_an_authority_that_cannot_be_read_is_a_node_error(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"none\.pem"):
        fetch(NodeAddress("https://127.0.0.1:1", ca=tmp_path / "none.pem"))
