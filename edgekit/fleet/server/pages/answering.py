"""How every page answers: HTML or its live parts, errors as pages, and headers that leave nothing to others."""

from __future__ import annotations

import gzip
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from edgekit.errors import AuthenticationError, EdgekitError, UsageError
from edgekit.fleet.protocol.people import ROLES, Role
from edgekit.fleet.server.asking import Service
from edgekit.fleet.server.live import Live, Parts
from edgekit.fleet.server.problems import status_of
from edgekit.fleet.server.sessions import SIGNED_IN, Visitor, cookie_of, word_of
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.web.drawing import draw_page, draw_parts

Context = dict[str, Any]
Build = Callable[[], Context]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Vary": "Accept, Accept-Encoding, Cookie",
}
STREAM = "text/event-stream"
WORTH_BYTES, GZIP_LEVEL = 1024, 5


def shield(response: Response) -> Response:
    """A header that the route has set stays."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def invalid(error: ValidationError | RequestValidationError) -> UsageError:
    """The first thing that is wrong, as a person would be told."""
    first = error.errors()[0]
    where = ".".join(str(key) for key in first["loc"] if key not in ("path", "query", "body"))
    told = str(first["msg"]).removeprefix("Value error, ")
    return UsageError(f"{where}: {told}" if where else told, hint="change it and send it again")


class PageRoute(APIRoute):
    """Errors as pages; whoever is not signed in is asked to."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        plain = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await plain(request)
            except AuthenticationError:
                response = _ask_to_sign_in(request)
            except EdgekitError as error:
                response = told(error)
            except RequestValidationError as error:
                response = told(invalid(error))
            return shield(_smaller(request, response))

        return handle


def _smaller(request: Request, response: Response) -> Response:
    """Compressed, where the browser takes it. What answers a form may hold a token, and stays as it is."""
    body = getattr(response, "body", b"")
    takes = "gzip" in request.headers.get("accept-encoding", "")
    if request.method != "GET" or not takes or len(body) < WORTH_BYTES or "content-encoding" in response.headers:
        return response
    made = Response(gzip.compress(body, GZIP_LEVEL, mtime=0), response.status_code)
    kept = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    made.raw_headers = [*kept, *made.raw_headers, (b"content-encoding", b"gzip")]
    return made


def page_router() -> APIRouter:
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def _ask_to_sign_in(request: Request) -> Response:
    if request.headers.get("accept", "").startswith(STREAM):
        return Response(status_code=204)  # which ends an EventSource for good
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    after = "" if request.method != "GET" or asked == "/" else f"?next={quote(asked, safe='')}"
    return RedirectResponse(f"/sign-in{after}", status_code=303)


def told(error: EdgekitError) -> Response:
    """As a page of its own."""
    status = status_of(error)
    context = {"error": error, "status": status, "now": time.time()}
    return HTMLResponse(draw_page("error.html", context), status_code=status)


@dataclass(frozen=True)
class Asked:
    """A page that somebody who is signed in asks for."""

    request: Request
    service: FleetService
    actor: Actor

    def may(self, role: Role) -> bool:
        return ROLES.index(self.actor.role) >= ROLES.index(role)

    async def show(self, template: str, build: Build, *, status: int = 200, **more: Any) -> Response:
        """`build` reads what the template needs, off the event loop. `more`: what parts never need."""
        if self.request.method == "GET" and self.request.headers.get("accept", "").startswith(STREAM):
            return self._stream(template, build)
        text = await to_thread.run_sync(self._page, template, build, more)
        return HTMLResponse(text, status_code=status)

    def _page(self, template: str, build: Build, more: Context) -> str:
        word = word_of(cookie_of(self.request, SIGNED_IN))
        own = {"word": word, "actor": self.actor, "path": self.request.url.path, "values": {}, "error": None}
        return draw_page(template, {**self._shared(), **own, **build(), **more})

    def _shared(self) -> Context:
        """Nothing of one sign-in alone: streams of an address share what is drawn."""
        return {"now": self.service.core.now(), "may": self.may}

    def _stream(self, template: str, build: Build) -> Response:
        live: Live = self.request.app.state.live
        key = cookie_of(self.request, SIGNED_IN)
        live.admit(key)

        async def draw() -> Parts:
            return await to_thread.run_sync(lambda: draw_parts(template, {**self._shared(), **build()}))

        async def still() -> bool:
            try:
                return await to_thread.run_sync(self.service.sign_ins.identify, key) == self.actor
            except AuthenticationError:
                return False

        query = [(name, value) for name, value in self.request.query_params.multi_items() if name != "marks"]
        address = f"{self.actor.role} {self.request.url.path} {query}"
        marks = frozenset(self.request.query_params.get("marks", "")[:1000].split(","))
        events: AsyncIterator[str] = live.stream(key, address, draw, still, marks)
        return StreamingResponse(events, media_type=STREAM, headers={"X-Accel-Buffering": "no"})

    async def do(self, action: Callable[[], object], then: str | Callable[[Any], str]) -> Response:
        """Carries it out, then leads on; what was typed wrong is raised as UsageError."""

        def carried_out() -> object:
            try:
                return action()
            except ValidationError as error:
                raise invalid(error) from error
            finally:
                self.service.glances.forget()

        found = await to_thread.run_sync(carried_out)
        return RedirectResponse(then if isinstance(then, str) else then(found), status_code=303)

    async def retry(
        self, attempt: Coroutine[Any, Any, Response], template: str, build: Build, values: dict[str, str]
    ) -> Response:
        """What `attempt` answers; where it is refused, the form again with what was typed."""
        try:
            return await attempt
        except AuthenticationError:
            raise
        except EdgekitError as error:
            return await self.show(template, build, status=status_of(error), values=values, error=error)


def asked(request: Request, service: Service, actor: Visitor) -> Asked:
    return Asked(request, service, actor)


Page = Annotated[Asked, Depends(asked)]
