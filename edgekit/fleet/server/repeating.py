"""Requests that may be sent twice: with the header `Idempotency-Key` the second one gets the answer of the first.

Source: the IETF draft "The Idempotency-Key HTTP Header Field" (httpapi working group). A key belongs to whoever sent it
and to what it was sent with; with anything else it is refused. Answers that tell a token are not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute

from edgekit.errors import ConflictError, OverloadedError, UsageError
from edgekit.fleet.server.asking import person, service_of
from edgekit.fleet.service.repeats import Repeats

HEADER = "idempotency-key"
MOST = 200
UNTOLD = "x-tells-a-token"  # of a route's openapi_extra: its answer is not kept

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class RepeatableRoute(APIRoute):
    """POSTs with a key are answered once."""

    def get_route_handler(self) -> Handler:
        handle: Handler = super().get_route_handler()
        tells = bool((self.openapi_extra or {}).get(UNTOLD))

        async def once(request: Request) -> Response:
            key = request.headers.get(HEADER, "")
            if request.method != "POST" or not key:
                return await handle(request)
            if len(key) > MOST:
                raise UsageError(f"an idempotency key of {len(key)} characters, allowed {MOST}", hint="a UUID will do")
            return await _once(request, handle, key, tells)

        return once


async def _once(request: Request, handle: Handler, key: str, tells: bool) -> Response:
    service = service_of(request)
    await person(request, service)  # who is not known writes nothing, and hears no answer of before
    repeats: Repeats = service.repeats
    who = request.headers.get("authorization", "")
    own = hashlib.sha256(f"{who}\n{key}".encode()).hexdigest()
    body = await request.body()
    what = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode() + body).hexdigest()
    before = await to_thread.run_sync(repeats.claim, own, what)
    if before is not None:
        if before.fingerprint != what:
            raise ConflictError("this idempotency key was sent with something else", hint="make a new key for it")
        if before.status == 0:
            raise OverloadedError(
                "the first request with this idempotency key is not done", hint="try again in a second"
            )
        if not before.body:
            raise ConflictError("this was done; its token was told then", hint="remove what was made, and make it anew")
        return Response(before.body, before.status, media_type="application/json")
    try:
        response = await handle(request)
    except BaseException:
        await to_thread.run_sync(repeats.release, own)
        raise
    kept = "" if tells else bytes(response.body).decode()
    await to_thread.run_sync(repeats.keep, own, response.status_code, kept)
    return response
