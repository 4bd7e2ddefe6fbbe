"""Signing in by token, signing out, and the two files that pages need."""

from __future__ import annotations

import time
from typing import Annotated

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from edgekit.errors import AbsentError, AuthenticationError, EdgekitError
from edgekit.fleet.server.asking import Service
from edgekit.fleet.server.pages.answering import page_router
from edgekit.fleet.server.problems import status_of
from edgekit.fleet.server.sessions import (
    SIGNED_IN,
    VISITING,
    Form,
    cookie_of,
    drop_cookie,
    new_visit,
    place_after,
    read_form,
    set_cookie,
    word_of,
)
from edgekit.fleet.web.drawing import draw_page, statics

router = page_router()

KEPT_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}


@router.get("/static/{name}")
async def static(name: str) -> Response:
    for found in statics().values():
        if found.name == name:
            return Response(found.content, media_type=found.media_type, headers=KEPT_FOR_EVER)
    raise AbsentError(f"no file {name:.60}", hint="reload the page")


@router.get("/sign-in")
async def ask(request: Request, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
    return _form(request, place_after(next), None)


def _form(request: Request, after: str, error: EdgekitError | None) -> Response:
    visit = cookie_of(request, VISITING) or new_visit()
    context = {"word": word_of(visit), "after": after, "error": error, "now": time.time()}
    status = 200 if error is None else status_of(error)
    response = HTMLResponse(draw_page("sign_in.html", context), status_code=status)
    set_cookie(request, response, VISITING, visit)
    return response


@router.post("/sign-in")
async def sign_in(request: Request, service: Service) -> Response:
    """A new key each time, so that nobody can choose it beforehand."""
    fields = await read_form(request, cookie_of(request, VISITING))
    after = place_after(fields.get("next", "/"))
    try:
        key = await to_thread.run_sync(service.sign_ins.begin, fields.get("token", "").strip()[:200])
    except AuthenticationError as error:
        return _form(request, after, error)
    response = RedirectResponse(after, status_code=303)
    set_cookie(request, response, SIGNED_IN, key)
    drop_cookie(request, response, VISITING)
    return response


@router.post("/sign-out")
async def sign_out(request: Request, service: Service, fields: Form) -> Response:
    await to_thread.run_sync(service.sign_ins.end, cookie_of(request, SIGNED_IN))
    response = RedirectResponse("/sign-in", status_code=303)
    drop_cookie(request, response, SIGNED_IN)
    response.headers["Clear-Site-Data"] = '"cache"'
    return response
