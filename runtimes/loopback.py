"""Whether an address is this machine's own, which nobody else can reach or read."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """`host`: a name or an address, without brackets."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
