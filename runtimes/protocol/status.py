"""Errors <-> statuses: what a node answers for each error, and what a client makes of an answer.

A node names the class of the error in `ERROR_KEY` (trailing metadata over gRPC, a header over REST); a stranger's
server is understood by its status alone.
"""

from __future__ import annotations

from typing import Any

import grpc

from edgekit import errors
from edgekit.errors import EdgekitError

ERROR_KEY = "edgekit-error"
RETRY_KEY = "retry-after"

# The most special first: error -> (gRPC code, HTTP status).
STATUSES: tuple[tuple[type[EdgekitError], grpc.StatusCode, int], ...] = (
    (errors.UnknownNameError, grpc.StatusCode.NOT_FOUND, 404),
    (errors.InputError, grpc.StatusCode.INVALID_ARGUMENT, 400),
    (errors.FrameError, grpc.StatusCode.DATA_LOSS, 400),
    (errors.CodecError, grpc.StatusCode.INVALID_ARGUMENT, 400),
    (errors.MismatchError, grpc.StatusCode.FAILED_PRECONDITION, 409),
    (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    (errors.AuthenticationError, grpc.StatusCode.UNAUTHENTICATED, 401),
    (errors.UnreachableError, grpc.StatusCode.UNAVAILABLE, 503),
    (errors.NodeError, grpc.StatusCode.UNAVAILABLE, 503),
    (EdgekitError, grpc.StatusCode.INTERNAL, 500),
)

_KINDS = {kind.__name__: kind for kind, _, _ in STATUSES if kind not in (EdgekitError, errors.UnknownNameError)}
_CODES = {code: kind for kind, code, _ in reversed(STATUSES)} | {
    grpc.StatusCode.UNAVAILABLE: errors.UnreachableError,
    grpc.StatusCode.PERMISSION_DENIED: errors.AuthenticationError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InputError,
    grpc.StatusCode.NOT_FOUND: errors.MismatchError,
    grpc.StatusCode.INTERNAL: errors.RemoteError,
}
_CONNECTION_SIGNS = (
    "failed to connect to all",
    "DNS resolution failed",
    "errors resolving",
    "Socket closed",
    "recvmsg:",
)
_CONNECTION_WORDS = (
    ("Connection refused", "connection refused, nothing listens there"),
    ("No route to host", "no route to it"),
    ("unreachable", "its network cannot be reached"),
    ("DNS", "no host of that name"),
    ("errors resolving", "no host of that name"),
    ("Connection reset", "the connection broke"),
    ("Socket closed", "the connection broke"),
    ("imeout", "no connection in time"),
)
_TLS_SIGNS = ("CERTIFICATE_VERIFY_FAILED", "handshake", "SSL", "certificate", "Peer name")


def grpc_code(error: EdgekitError) -> grpc.StatusCode:
    return next(code for kind, code, _ in STATUSES if isinstance(error, kind))


def http_status(error: EdgekitError) -> int:
    return next(status for kind, _, status in STATUSES if isinstance(error, kind))


def error_kind(error: EdgekitError) -> str:
    """The name of the class of the table that `error` is one of."""
    return next(kind.__name__ for kind, _, _ in STATUSES if isinstance(error, kind))


def from_grpc(error: Any, target: str) -> EdgekitError:
    """What a `grpc.RpcError` of a call to `target` means: RemoteError and its children, InputError, CodecError."""
    code, details = error.code(), error.details() or ""
    metadata = dict(error.trailing_metadata() or ())
    kind = _KINDS.get(str(metadata.get(ERROR_KEY, "")))
    if kind is None:
        kind = _CODES.get(code, errors.RemoteError)
        if code is grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in _TLS_SIGNS):
            kind = errors.AuthenticationError
    if kind is errors.NodeError:
        kind = errors.UnreachableError
    hint = _HINTS.get(kind, "")
    if kind is errors.UnreachableError and target.startswith("grpcs:") and "closed" in details:
        # A server that misses our certificate hangs up after the handshake is over for us.
        hint += "; it may ask its callers for a certificate"
    return kind(f"{target}: {_told(details) or code.name}", hint=hint)


def _told(details: str) -> str:
    """gRPC's own text about a connection in fewer words; what a node says is left as it is."""
    if not any(sign in details for sign in _CONNECTION_SIGNS):
        return details
    return next((words for sign, words in _CONNECTION_WORDS if sign in details), details)


_HINTS: dict[type[EdgekitError], str] = {
    errors.AuthenticationError: "check the token, the certificate's dates and names, and the CA given",
    errors.UnreachableError: "check the address, and that the node runs (`edgekit serve`)",
    errors.OverloadedError: "try again later, or give the node a larger --queue",
    errors.MismatchError: "serve and run the same bundle",
}
