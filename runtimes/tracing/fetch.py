"""Spans that a node keeps in memory, over its REST port: GET /v2/traces."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekit.errors import AuthenticationError, NodeError, RemoteError, UnreachableError, UsageError
from edgekit.runtimes.loopback import is_loopback
from edgekit.runtimes.tracing.files import Reading, read_objects

TIMEOUT_S = 10.0

# Of one answer: a node keeps 256 traces of 1024 spans at most.
MAX_ANSWER_BYTES = 256 << 20


@dataclass(frozen=True)
class NodeAddress:
    """`url`: http(s)://host:port, where the node speaks REST. `token` and `certificate`, the files of one and
    its key, as it asks for; `ca`: whom its own must come from, the system's without."""

    url: str
    token: str = ""
    ca: Path | None = None
    certificate: tuple[Path, Path] | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise UsageError(
                f"{self.url!r} is no address of a node", hint="give its REST port, like http://127.0.0.1:8101"
            )
        if self.token and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise UsageError(f"a token for {self.url} would be sent in the clear", hint="use https://")


def fetch(node: NodeAddress) -> Reading:
    """All that the node keeps.

    Raises UnreachableError, AuthenticationError, NodeError (files of certificates), RemoteError where it records
    nothing or answers something else.
    """
    answer = _get(node, "/v2/traces")
    spans = answer.get("spans") if isinstance(answer, dict) else None
    if not isinstance(spans, list):
        raise RemoteError(f"{node.url}: the answer holds no spans", hint="is it the REST port of an edgekit node?")
    return read_objects(spans)


def _get(node: NodeAddress, path: str) -> Any:
    headers = {"Authorization": f"Bearer {node.token}"} if node.token else {}
    request = urllib.request.Request(node.url.rstrip("/") + path, headers=headers)
    try:
        with _opener(node).open(request, timeout=TIMEOUT_S) as reply:
            return json.loads(reply.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            said = _said(error)
        if error.code in (401, 403):
            raise AuthenticationError(f"{node.url}: {said}", hint="--token-file takes the node's token") from error
        hint = "start it with `edgekit serve --trace FILE`: without, it records nothing" if error.code == 404 else ""
        raise RemoteError(f"{node.url}: {said}", hint=hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise AuthenticationError(
                f"{node.url}: {reason.verify_message}", hint="--ca takes the PEM file of who signed its certificate"
            ) from error
        raise UnreachableError(f"{node.url}: {reason}", hint="--node takes the REST port of a node") from error


def _opener(node: NodeAddress) -> urllib.request.OpenerDirector:
    """Straight to the node: no proxy of the environment, no redirection to somewhere else."""
    try:
        context = ssl.create_default_context(cafile=str(node.ca) if node.ca is not None else None)
        if node.certificate is not None:
            context.load_cert_chain(*node.certificate)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(str(path) for path in (node.ca, *(node.certificate or ())) if path is not None)
        raise NodeError(f"cannot use {named}: {error}", hint="--ca and --certificate take PEM files") from error
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect()
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """A token goes to no other place."""


def _said(error: urllib.error.HTTPError) -> str:
    try:
        said = json.loads(error.read(1 << 16))["error"]
    except (ValueError, KeyError, TypeError, OSError):
        said = f"HTTP {error.code}"
    return str(said)
