"""The door of agents: their syncs pass by the framework, whose layers would take five times as long as all the rest.

The same function answers them as behind the route, which stays for the description of the API and for tests.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgekit.errors import EdgekitError
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server import agents, problems
from edgekit.fleet.server.asking import device, service_of

logger = logging.getLogger("edgekit")

SYNC_PATH = f"{API}/agent/sync"


class AgentDoor:
    """ASGI, around the application."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SYNC_PATH and scope["method"] == "POST":
            scope["app"] = self._app
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            service = service_of(request)
            return await agents.answer_sync(request, await device(request, service), service)
        except EdgekitError as error:
            return await problems.tell_known(request, error)
        except RequestValidationError as error:
            return await problems.tell_invalid(request, error)
        except HTTPException as error:
            return await problems.tell_http(request, error)
        except Exception:
            logger.exception("a sync failed")
            return problems.answer(500, "the service failed", "its log tells why", "EdgekitError")
