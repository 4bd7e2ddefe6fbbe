"""Errors as HTTP answers: a status, and a body that says what to do."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from edgekit.errors import (
    AbsentError,
    AuthenticationError,
    BundleError,
    ConflictError,
    EdgekitError,
    ForbiddenError,
    OverloadedError,
    StoreError,
    UsageError,
)
from edgekit.fleet.protocol.wire import Problem

STATUSES: tuple[tuple[type[EdgekitError], int], ...] = (
    (AuthenticationError, 401),
    (ForbiddenError, 403),
    (AbsentError, 404),
    (ConflictError, 409),
    (BundleError, 422),
    (OverloadedError, 429),
    (StoreError, 503),
    (UsageError, 400),
)
RETRY_AFTER_S = 5
# What a path's pattern asks for, in words, and where such a thing is found.
WORDS = {
    r"^([0-9a-f]{4,32}|latest)$": (
        "rollout, allowed the id or 4 digits and more of its front, or latest",
        "edgekit fleet status tells the latest, edgekit fleet events those before",
    ),
    r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$": (
        "name, allowed small letters, digits, and dots, dashes and underscores between them, 63 at most",
        "like pi or plant-3",
    ),
}


def answer(status: int, error: str, hint: str = "", kind: str = "") -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(Problem(error=error, hint=hint, kind=kind).model_dump(), status, headers)


def status_of(error: EdgekitError) -> int:
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


async def tell_known(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgekitError)
    return answer(status_of(error), error.message, error.hint, type(error).__name__)


async def tell_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    words = WORDS.get(first.get("ctx", {}).get("pattern", ""))
    if words is not None and first["loc"][0] == "path":
        return answer(422, f"{first['input']!r:.80} is no {words[0]}", words[1], "UsageError")
    where = ".".join(str(key) for key in first["loc"])
    return answer(422, f"{where}: {first['msg']}", "see /openapi.json", "UsageError")


async def tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = answer(error.status_code, str(error.detail), "see /openapi.json", "UsageError")
    said.headers.update(error.headers or {})
    if error.status_code == 405:
        # The router names the methods of the first route of this path alone.
        said.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return said


def _methods(request: Request) -> set[str]:
    """Of every route of this path; FastAPI may keep those of a router in a thing of their own."""
    found: set[str] = set()
    for outer in request.app.routes:
        router = getattr(outer, "original_router", None)
        for route in [outer] if router is None else router.routes:
            if route.matches(request.scope)[0] != Match.NONE:
                found |= getattr(route, "methods", None) or set()
    return found


def install(app: FastAPI) -> None:
    app.add_exception_handler(EdgekitError, tell_known)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(HTTPException, tell_http)
