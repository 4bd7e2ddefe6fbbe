"""Addresses of the proxy and of the cluster, tried before Ray is."""

from __future__ import annotations

import socket

from edgekit.errors import NodeError, UnreachableError

CONNECT_S = 5.0


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def check_reached(address: str) -> None:
    """Raises UnreachableError where nothing listens at host:port; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UnreachableError(
            f"no cluster answers at {address}: {error.strerror or error}", hint="check --ray-address, and `ray status`"
        ) from error


def free_port(host: str, port: int, option: str = "--port") -> int:
    """`port`, or one that is free for 0. Raises NodeError for one that is taken, before Ray is started."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NodeError(
                f"cannot listen on {host}:{port}: {error.strerror}", hint=f"choose another {option}"
            ) from error
        found: int = probe.getsockname()[1]
        return found
