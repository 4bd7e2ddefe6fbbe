"""What every route's description shares: how it fails, and how one says who one is."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from edgekit.fleet.protocol.wire import API, Problem

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Not what is allowed"},
    401: {"model": Problem, "description": "No token or certificate, or one that is not known"},
    403: {"model": Problem, "description": "The role, or a revoked device, does not allow it"},
    404: {"model": Problem, "description": "There is none of that name"},
    408: {"model": Problem, "description": "The body did not come in time"},
    409: {"model": Problem, "description": "Something stands in the way, or has changed since it was read"},
    413: {"model": Problem, "description": "The body is too long"},
    422: {"model": Problem, "description": "The body or a parameter is not of its form"},
    429: {"model": Problem, "description": "Too many at once: see Retry-After"},
    503: {"model": Problem, "description": "The database or the store cannot be used: see Retry-After"},
}


# Asked without a token: whether the service is well, whom its certificate comes from, and to become a device.
OPEN = (f"{API}/health", f"{API}/authority", f"{API}/enroll")


def describe(app: FastAPI) -> None:
    """Adds to its OpenAPI how one signs in: people by a token, devices by their certificate, or a token on loopback."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        found = plain()
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        for path, operations in found["paths"].items():
            for operation in operations.values():
                if path in OPEN:
                    operation["security"] = []
                _as_json(operation["responses"])
        return found

    app.openapi = described  # type: ignore[method-assign]


def _as_json(responses: dict[str, Any]) -> None:
    """A route that answers with a page or a file tells of its problems in JSON all the same."""
    for status, response in responses.items():
        if int(status) >= 400:
            response["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
