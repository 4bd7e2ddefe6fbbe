"""Whoever shows secrets that do not count is answered more and more slowly: so many a minute from one address, and 429
with Retry-After for the rest, before anything is looked up.

Secrets are 256 random bits, so this keeps a service from being worn out rather than a token from being found. Requests
that show none, and those of devices whose certificate has proved who they are, pass always.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from edgekit.errors import OverloadedError
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.asking import TLS
from edgekit.fleet.server.limits import SAFE
from edgekit.fleet.server.pages.answering import shield, told
from edgekit.fleet.server.problems import answer

AT_ONCE, A_SECOND = 30.0, 0.5  # an office behind one address has some tokens that ended
MOST_ADDRESSES = 10_000
PAGE_FORM = "/sign-in"
FORMS = (f"{API}/enroll", PAGE_FORM)  # where a secret stands in the body

Message = dict[str, Any]


class Guesses:
    """How many more an address may make: a bucket that fills again. The oldest addresses are forgotten."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Until the next one, 0 for now."""
        spent = self._spent_of(address)
        return 0.0 if spent <= AT_ONCE - 1 else (spent - (AT_ONCE - 1)) / A_SECOND

    def wrong(self, address: str) -> None:
        self._spent[address] = (self._spent_of(address) + 1, self._now())
        self._spent.move_to_end(address)
        while len(self._spent) > MOST_ADDRESSES:
            self._spent.popitem(last=False)

    def _spent_of(self, address: str) -> float:
        spent, at = self._spent.get(address, (0.0, 0.0))
        return max(0.0, spent - A_SECOND * (self._now() - at))


class SlowGuessing:
    """ASGI, around the application."""

    def __init__(self, app: Any, guesses: Guesses | None = None) -> None:
        self._app, self._guesses = app, guesses or Guesses()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not _shows_secret(scope):
            await self._app(scope, receive, send)
            return
        address = address_of(scope)
        wait_s = self._guesses.wait_s(address)
        if wait_s > 0:
            refusal = _refusal(scope["path"])
            refusal.headers["retry-after"] = str(math.ceil(wait_s))
            refusal.headers["connection"] = "close"  # its body is not read
            for name, value in SAFE.items():
                refusal.headers.setdefault(name.decode(), value.decode())
            await refusal(scope, receive, send)
            return

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                self._guesses.wrong(address)
            await send(message)

        await self._app(scope, receive, watch)


def _refusal(path: str) -> Response:
    """A page for who fills in the page's form."""
    error = OverloadedError(
        "too many tokens from this address did not count", hint="wait a minute, then use one that does"
    )
    if path == PAGE_FORM:
        return shield(told(error))
    return answer(429, error.message, error.hint, "OverloadedError")


def address_of(scope: Message) -> str:
    """The caller's; of IPv6 the network of 64 bits, which one household has."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:  # so a socket for both tells of IPv4, whose callers are not one household
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False).network_address)
    return str(found)


def _shows_secret(scope: Message) -> bool:
    if scope.get("extensions", {}).get(TLS, {}).get("client_serial"):
        return False
    is_form = scope["method"] == "POST" and scope["path"] in FORMS
    return is_form or any(name == b"authorization" for name, _ in scope["headers"])
