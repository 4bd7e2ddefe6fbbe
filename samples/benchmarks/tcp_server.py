"""A TCP server for what is measured behind a link: a thread a connection, until the block ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ANY = ("127.0.0.1", 0)
HEAD_BYTES = 8


@contextmanager
def tcp_server(serve: Callable[[socket.socket], None], timeout_s: float | None = None) -> Iterator[tuple[str, int]]:
    """(host, port), where `serve` is called with each connection. One that breaks or times out ends quietly."""
    with socket.create_server(ANY) as listener:

        def attend(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.settimeout(timeout_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=attend, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def echo(connection: socket.socket) -> None:
    """Sends back what it gets, and ends its side when the client has."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def answering(answer_bytes: int, compute_ms: float = 0.0) -> Callable[[socket.socket], None]:
    """Reads as many bytes as a request states in its first 8 (themselves included), computes by sleeping, answers."""

    def serve(connection: socket.socket) -> None:
        while head := connection.recv(HEAD_BYTES, socket.MSG_WAITALL):
            left = int.from_bytes(head, "big") - len(head)
            while left > 0:
                left -= len(connection.recv(min(left, 1 << 16)))
            if compute_ms:
                time.sleep(compute_ms / 1e3)
            connection.sendall(bytes(answer_bytes))

    return serve


def request(size_bytes: int) -> bytes:
    """So many bytes, at least 8, that state how many they are."""
    return size_bytes.to_bytes(HEAD_BYTES, "big") + bytes(size_bytes - HEAD_BYTES)


def dial(address: tuple[str, int], timeout_s: float = 60.0) -> socket.socket:
    connection = socket.create_connection(address, timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
