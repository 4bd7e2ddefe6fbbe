"""A port to listen on, for servers that run in an event loop."""

from __future__ import annotations

import socket

from edgekit.errors import NodeError

BACKLOG = 4096  # connections that wait to be accepted; the system may allow fewer


def open_socket(host: str, port: int) -> socket.socket:
    """Bound and listening; port 0 takes a free one. Raises NodeError where it is taken."""
    # asyncio sends small answers at once (TCP_NODELAY) only on sockets that name their protocol; without, a caller that
    # delays its acknowledgements waits 40 ms for the second half of each answer.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise NodeError(f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port") from error
    listener.setblocking(False)
    return listener
