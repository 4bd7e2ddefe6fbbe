"""A Node: bundles behind a REST and a gRPC port; starts, serves, drains, stops."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edgekit.bundle.manifest import Tier
from edgekit.errors import NodeError, UsageError
from edgekit.runtimes.protocol.client import ClientOptions
from edgekit.runtimes.server.announce import Announcement
from edgekit.runtimes.server.catalog import Catalog, Reloaded
from edgekit.runtimes.server.decoding import DecodePool, MediaOptions
from edgekit.runtimes.server.engine import Engine
from edgekit.runtimes.server.grpc_front import GrpcFront
from edgekit.runtimes.server.iteration import IterationOptions
from edgekit.runtimes.server.metrics import Metrics
from edgekit.runtimes.server.model import OpenSession, Serving, open_native
from edgekit.runtimes.server.rest_front import RestFront
from edgekit.runtimes.server.schedule import BatchOptions
from edgekit.runtimes.server.security import Security
from edgekit.runtimes.server.tracing import open_tracer
from edgekit.runtimes.server.upstream import Upstream

MAX_WORKERS = 512


@dataclass(frozen=True)
class NodeOptions:
    """A port 0 takes a free one, None opens none; `port` is REST's. `threads`: of each model's runtime, None takes
    every core. `max_bytes` bounds a request, `body_timeout_s` the time that its headers or its body may take over
    REST. `trace`: a file for spans. `key`: whose signature the bundles must bear. `deadline_ms`: of requests that bring
    none. `degrade`: a coarser part of the bundle answers, marked, before a request is refused. `keep_versions`: of a
    path that is reloaded, the earlier bundles that stay served."""

    tier: Tier = "edge"
    host: str = "127.0.0.1"
    port: int | None = 0
    grpc_port: int | None = 0
    security: Security = Security()
    upstream: str | None = None
    upstream_client: ClientOptions = ClientOptions()
    batch: BatchOptions = field(default_factory=BatchOptions)
    max_bytes: int = 16 << 20
    body_timeout_s: float = 10.0
    with_metrics: bool = True
    announce: bool = False
    threads: int | None = None
    trace: Path | None = None
    key: Path | None = None
    deadline_ms: float | None = None
    degrade: bool = False
    keep_versions: int = 1
    open_session: OpenSession = open_native
    iteration: IterationOptions = IterationOptions()
    media: MediaOptions = MediaOptions()

    def __post_init__(self) -> None:
        if self.port and self.port == self.grpc_port:
            raise UsageError(
                f"the port {self.port} for REST and for gRPC, allowed two different ones",
                hint=f"--port {self.port} --grpc-port {self.port % 65535 + 1}, or 0 for a free one",
            )


class Node:
    """Ports are bound and models loaded by the constructor; `start` lets requests in. Use it as a context manager."""

    def __init__(self, bundles: list[Path], options: NodeOptions = NodeOptions()) -> None:
        """Raises NodeError (port, certificate, host, nothing to serve), BundleError, MissingExtraError, UsageError,
        OutputError (the file for spans)."""
        self.options = options
        options.security.check_host(options.host)
        options.security.check_certificate()
        self._stopped = threading.Event()
        upstream = Upstream(options.upstream, options.upstream_client) if options.upstream else None
        self._tracer = open_tracer(f"edgekit-{options.tier}", options.trace)
        self._decoding = DecodePool(options.media)
        serving = Serving(
            options.threads,
            options.batch,
            options.security.tenants,
            options.degrade,
            options.open_session,
            options.iteration,
            self._decoding,
        )
        self.catalog = Catalog.open(
            bundles, options.tier, serving, key=options.key, keep_versions=options.keep_versions
        )
        self.engine = Engine(self.catalog, options.tier, upstream, Metrics(), self._tracer, options.deadline_ms)
        self._announcement: Announcement | None = None
        self._grpc: GrpcFront | None = None
        self._rest: RestFront | None = None
        try:
            self._listen()
            if options.announce:
                self._announce()
        except BaseException:
            self._close_fronts(0.0)
            self.engine.close()
            raise

    def _listen(self) -> None:
        options = self.options
        room = options.batch.queue + options.batch.max_batch * options.batch.workers
        workers = min(MAX_WORKERS, len(self.catalog.models) * room)
        shared = (self.engine, options.security, options.host)
        if options.grpc_port is not None:
            self._grpc = GrpcFront(*shared, options.grpc_port, options.max_bytes, workers)
        if options.port is not None:
            self._rest = RestFront(
                *shared,
                options.port,
                options.max_bytes,
                workers,
                body_timeout_s=options.body_timeout_s,
                with_metrics=options.with_metrics,
            )

    def _announce(self) -> None:
        if self._grpc is None:
            raise NodeError("a node without a gRPC port cannot be announced", hint="give it a --grpc-port")
        digests = [bundle.digest for bundle in self.catalog.bundles]
        self._announcement = Announcement(self.options.tier, self.options.host, self.grpc_url, digests)

    @property
    def grpc_url(self) -> str:
        """ "" without a gRPC port."""
        if self._grpc is None:
            return ""
        return f"{'grpcs' if self.options.security.certificate else 'grpc'}://{self._address}:{self._grpc.port}"

    @property
    def rest_url(self) -> str:
        """ "" without a REST port."""
        if self._rest is None:
            return ""
        return f"{'https' if self.options.security.certificate else 'http'}://{self._address}:{self._rest.port}"

    @property
    def _address(self) -> str:
        return f"[{self.options.host}]" if ":" in self.options.host else self.options.host

    def start(self) -> None:
        if self._grpc is not None:
            self._grpc.start()
        if self._rest is not None:
            self._rest.start()

    def reload(self) -> list[Reloaded]:
        """Serves what lies at the bundles' paths now; requests inside are answered by what they found."""
        return self.catalog.reload()

    def hurry(self) -> None:
        """Whoever drains this node waits no longer. A signal handler may call it."""
        self.engine.hurry()

    def stop(self, grace_s: float = 10.0) -> bool:
        """Drains: not ready any more, further requests refused, those inside finished within `grace_s`; then frees
        everything: what waits is refused, what runs is finished. False where some were cut off. A second call does
        nothing."""
        if self._stopped.is_set():
            return True
        self._stopped.set()
        if self._announcement is not None:
            self._announcement.close()
            self._announcement = None
        drained = self.engine.drain(grace_s)
        self._close_fronts(1.0)
        self.engine.close()
        self._decoding.close()
        if self._tracer is not None:
            self._tracer.close()
        return drained

    def _close_fronts(self, grace_s: float) -> None:
        if self._announcement is not None:
            self._announcement.close()
        if self._rest is not None:
            self._rest.stop(grace_s)
        if self._grpc is not None:
            self._grpc.stop(grace_s)

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
