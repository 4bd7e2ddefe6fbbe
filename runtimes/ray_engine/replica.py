"""A replica: a whole node in a Ray actor, its REST application mounted in Ray's proxy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import MismatchError, NodeError
from edgekit.runtimes.host import SWITCH_INTERVAL_S
from edgekit.runtimes.ray_engine.answer import Marked
from edgekit.runtimes.ray_engine.grpc_face import Loopback, Said
from edgekit.runtimes.ray_engine.options import RayOptions
from edgekit.runtimes.server.node import Node
from edgekit.runtimes.server.rest_app import RestApp


class Replica:
    """`bundles`: (path, digest); the paths must lead to the same bundles on every machine of the cluster.

    Ray calls the methods with two underscores and `check_health`. It lets `max_ongoing` requests in, so that as many
    threads suffice. Metrics are Ray's: a page of one replica, chosen at random, would say nothing.
    """

    def __init__(self, bundles: Sequence[tuple[str, str]], options: RayOptions) -> None:
        """Raises like Node, and MismatchError where a path holds another bundle than was deployed."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._options = options
        self.node = Node([Path(path) for path, _ in bundles], options.replica_node)
        for bundle, (path, digest) in zip(self.node.catalog.bundles, bundles, strict=True):
            if bundle.digest != digest:
                self.node.stop(0.0)
                raise MismatchError(
                    f"{path} on this machine is {bundle.digest[:16]}, deployed was {digest[:16]}",
                    hint="give every machine of the cluster the same file, under the same path",
                )
        node = options.node
        self._app = RestApp(
            self.node.engine,
            node.security,
            node.max_bytes,
            options.max_ongoing,
            node.body_timeout_s,
            with_metrics=False,
        )

        self._loopback = Loopback(self.node.grpc_url) if self.node.grpc_url else None
        self.node.start()

    async def call_grpc(self, method: str, data: bytes, metadata: list[tuple[str, str]], left_s: float | None) -> Said:
        """A call of the protocol as bytes, through the node's own gRPC server (`GrpcFace`)."""
        assert self._loopback is not None
        return await self._loopback.call(method, data, metadata, left_s)

    def __serve_build_asgi_app__(self) -> Any:
        from ray import serve

        return Marked(self._app.asgi, serve.get_replica_context().replica_id.unique_id)

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self.node.engine.is_ready:
            raise NodeError("the engine of this replica takes no requests", hint="Ray starts another one")

    def __del__(self) -> None:
        """Ray sends nothing more by now, and what was inside is answered."""
        if hasattr(self, "_app"):
            self.node.stop(self._options.grace_s)
            self._app.close()
