"""The node above: where plans go on, and models that are not held here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.runtimes.protocol.calls import InferAnswer, InferCall
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient


class Upstream:
    """Connects at the first call, again after a failure; safe to use from several threads."""

    def __init__(self, url: str, options: ClientOptions = ClientOptions()) -> None:
        """Raises UsageError or NodeError, like NodeClient."""
        self.url = url
        self._client = NodeClient(url, options)

    def infer(self, call: InferCall, timeout_s: float | None, headers: Mapping[str, str]) -> InferAnswer:
        """Raises what the upstream says; UnreachableError names it."""
        return self._client.infer(call, timeout_s=timeout_s, headers=headers)

    def call(self, method: str, request: Any, timeout_s: float | None) -> Any:
        """A unary method with its messages, passed on as it is."""
        return self._client.call(method, request, timeout_s=timeout_s)

    def close(self) -> None:
        self._client.close()
