"""The protocol's REST paths as a Starlette application over an Engine, for whichever server mounts it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit.errors import AuthenticationError, EdgekitError, InputError, OverloadedError, SessionError
from edgekit.runtimes.protocol.http_body import JSON_LENGTH, read_call, read_object, write_answer
from edgekit.runtimes.protocol.status import ERROR_KEY, RETRY_KEY, error_kind, http_status
from edgekit.runtimes.server import describe
from edgekit.runtimes.server.engine import Engine
from edgekit.runtimes.server.metrics import CONTENT_TYPE
from edgekit.runtimes.server.openapi import document
from edgekit.runtimes.server.schedule import RefusedError
from edgekit.runtimes.server.security import Security
from edgekit.runtimes.server.tracing import kept_spans

logger = logging.getLogger("edgekit")

Endpoint = Callable[[Request], Awaitable[Response]]

# The last is what HTTP libraries state where nobody told them.
_TYPES = ("application/json", "application/octet-stream", "application/x-www-form-urlencoded")


class RestApp:
    """`asgi` is the application. `workers` bounds the requests inside; beyond, the answer is 429."""

    def __init__(
        self,
        engine: Engine,
        security: Security,
        max_bytes: int,
        workers: int,
        body_timeout_s: float = 10.0,
        with_metrics: bool = True,
    ) -> None:
        self._engine, self._security = engine, security
        self._max_bytes, self._body_timeout_s = max_bytes, body_timeout_s
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="edgekit-rest")
        self._room = workers
        self.asgi = self._routed(with_metrics)

    def close(self) -> None:
        """Requests inside are finished first."""
        self._pool.shutdown()

    def _routed(self, with_metrics: bool) -> Starlette:
        catalog = self._engine.catalog

        def found(request: Request) -> Any:
            return catalog.find(request.path_params["model"], request.path_params.get("version", ""))

        async def live(request: Request) -> Response:
            return JSONResponse({"live": True})

        async def ready(request: Request) -> Response:
            return _readiness(self._engine.is_ready)

        async def server(request: Request) -> Response:
            return JSONResponse(describe.server())

        async def metadata(request: Request) -> Response:
            model = found(request)
            return JSONResponse(describe.rest_metadata(model, catalog.versions(model.name)))

        async def model_ready(request: Request) -> Response:
            return _readiness(self._engine.is_ready, found(request).name)

        async def config(request: Request) -> Response:
            model = found(request)
            return JSONResponse(describe.config(model, catalog.versions(model.name)))

        async def stats(request: Request) -> Response:
            return JSONResponse(describe.rest_statistics([found(request)]))

        async def all_stats(request: Request) -> Response:
            return JSONResponse(describe.rest_statistics(catalog.models))

        async def index(request: Request) -> Response:
            body = await self._body(request)
            if body:
                read_object(body)
            return JSONResponse(describe.index(catalog.models))

        async def load(request: Request) -> Response:
            if request.state.tenant:
                raise AuthenticationError("models are exchanged by the node's owner", hint="send the owner's token")
            name = request.path_params["model"]
            outcomes = await asyncio.get_running_loop().run_in_executor(None, catalog.reload, name)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            paths = {outcome.path for outcome in outcomes}
            there = [one for one in catalog.models if one.bundle.path in paths]
            # Where a bundle of another name lies there now, all of that one.
            return JSONResponse(describe.index([one for one in there if one.name == name] or there))

        async def metrics(request: Request) -> Response:
            return Response(self._engine.metrics.render(), media_type=CONTENT_TYPE)

        recent = self._engine.tracer.recorder.recent if self._engine.tracer is not None else None

        async def traces(request: Request) -> Response:
            if request.state.tenant:
                raise AuthenticationError("traces are for the node's owner", hint="send the owner's token")
            assert recent is not None
            answer = partial(kept_spans, recent, request.path_params.get("trace", ""))
            return JSONResponse(await asyncio.get_running_loop().run_in_executor(None, answer))

        async def openapi(request: Request) -> Response:
            described = document(
                catalog,
                with_metrics=with_metrics,
                with_token=self._security.wants_token,
                with_traces=recent is not None,
            )
            return JSONResponse(described)

        closed = partial(_route, check=self._check)
        routes = [
            _route("/v2/health/live", live),
            _route("/v2/health/ready", ready),
            _route("/openapi.json", openapi),
            closed("/v2", server),
            closed("/v2/models/stats", all_stats),
            closed("/v2/repository/index", index, method="POST"),
            closed("/v2/repository/models/{model}/load", load, method="POST"),
            *([closed("/metrics", metrics)] if with_metrics else []),
            *([closed("/v2/traces", traces), closed("/v2/traces/{trace}", traces)] if recent is not None else []),
        ]
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                closed(base, metadata),
                closed(f"{base}/ready", model_ready),
                closed(f"{base}/config", config),
                closed(f"{base}/stats", stats),
                closed(f"{base}/infer", self._infer, method="POST"),
            ]
        app = Starlette(
            routes=routes,
            exception_handlers={HTTPException: _http_failure, EdgekitError: self._failure},
        )
        app.router.redirect_slashes = False
        return app

    def _check(self, request: Request) -> str:
        try:
            return self._security.check(request.headers.get("authorization"))
        except EdgekitError as error:
            self._engine.refused("", error)
            raise

    async def _infer(self, request: Request) -> Response:
        if self._room <= 0:
            raise OverloadedError("every worker of this node is busy", hint="try again in a second")
        self._room -= 1
        try:
            body = await self._body(request)
            work = partial(self._answer, body, dict(request.headers), dict(request.path_params), request.state.tenant)
            sent, json_length = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._room += 1
        self._engine.metrics.moved("rest", len(body), len(sent))
        if json_length is None:
            return Response(sent, media_type="application/json")
        return Response(sent, headers={JSON_LENGTH: str(json_length)}, media_type="application/octet-stream")

    def _answer(
        self, body: bytes, headers: dict[str, str], path: dict[str, str], tenant: str
    ) -> tuple[bytes, int | None]:
        try:
            call, wants_binary = read_call(body, headers.get(JSON_LENGTH), path["model"], path.get("version", ""))
        except EdgekitError as error:
            self._engine.refused(path["model"], error)
            raise
        return write_answer(self._engine.infer(call, headers=headers, tenant=tenant), wants_binary)

    async def _body(self, request: Request) -> bytes:
        """Raises HTTPException 408, 413 or 415: too slow, too long, compressed."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "compressed bodies are not read: send identity", {"Connection": "close"})
        kind = request.headers.get("content-type", _TYPES[0]).partition(";")[0].strip().lower()
        if kind not in _TYPES:
            raise HTTPException(
                415, f"the body is {kind!r:.60}, allowed {' and '.join(_TYPES)}", {"Connection": "close"}
            )
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._max_bytes:
            raise self._too_long()
        body = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                body.extend(chunk)
                if len(body) > self._max_bytes:
                    raise self._too_long()

        try:
            await asyncio.wait_for(read(), self._body_timeout_s)
        except asyncio.TimeoutError:
            message = f"the body did not arrive within {self._body_timeout_s:g} s"
            raise HTTPException(408, message, {"Connection": "close"}) from None
        except ClientDisconnect as error:
            raise InputError("the caller went away before its body was here") from error
        return bytes(body)

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"the body is longer than {self._max_bytes} bytes", {"Connection": "close"})

    async def _failure(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, EdgekitError)
        status, headers = http_status(error), {ERROR_KEY: error_kind(error)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status == 429:
            wait_s = error.retry_after_s if isinstance(error, RefusedError) else 1.0
            headers[RETRY_KEY] = str(max(1, round(wait_s)))
        return JSONResponse({"error": error.message}, status, headers)


def _route(path: str, endpoint: Endpoint, method: str = "GET", check: Callable[[Request], str] | None = None) -> Route:
    async def guarded(request: Request) -> Response:
        request.state.tenant = check(request) if check is not None else ""
        try:
            return await endpoint(request)
        except (EdgekitError, HTTPException):
            raise
        except Exception as error:
            # A handler of Starlette's for these answers too, and raises them again: the server then hangs up.
            logger.exception("%s %s failed", method, path)
            raise SessionError(f"the request failed: {type(error).__name__}") from error

    return Route(path, guarded, methods=[method])


def _readiness(is_ready: bool, model: str = "") -> Response:
    named = {"name": model} if model else {}
    return JSONResponse({**named, "ready": is_ready}, 200 if is_ready else 503)


async def _http_failure(request: Request, error: Exception) -> Response:
    """What has no place here, in the protocol's error body."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
