"""The head of a request, on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgekit.fleet.server import heads

HEAD = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """Until the other side ends it."""
    found = b""
    try:
        while chunk := connection.recv(65_536):
            found += chunk
    except ConnectionError:
        pass
    return found


@pytest.mark.parametrize(
    "begun",
    [b"GET /", HEAD + b"X: ", b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "],
    ids=["address", "header", "trailer"],
)
def test_a_head_without_an_end_is_refused_and_not_held(url: str, begun: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(begun)
        with pytest.raises(OSError):
            for _ in range(200):
                connection.sendall(b"a" * 100_000)


def test_many_headers_are_as_long_as_one(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(HEAD + b"X-A: b\r\n" * 5_000)
        connection.sendall(b"X-A: b\r\n" * 10_000)
        assert all_of(connection).startswith((b"HTTP/1.1 400", b""))


@pytest.mark.parametrize("begun", [b"", HEAD], ids=["nothing", "half"])
def test_a_head_that_does_not_come_in_time_ends_the_connection(
    url: str, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_S", 0.2)
    with connected(url) as connection:
        connection.sendall(begun)
        assert all_of(connection) == b""


def test_a_head_in_pieces_and_a_large_one_are_answered_and_the_connection_stays(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(url) as connection:
        for piece in (HEAD[:10], HEAD[10:], b"X: " + b"a" * 60_000, b"\r\n\r\n"):
            connection.sendall(piece)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(heads, "HEAD_S", 0.1)
        connection.sendall(HEAD + b"\r\n")
        assert b"HTTP/1.1 200" in connection.recv(65_536)
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")  # the keep-alive between two is another matter
        assert b"HTTP/1.1 200" in all_of(connection)
