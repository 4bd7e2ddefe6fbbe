"""Bundles on Ray Serve: deploy, roll over to another version, say who serves, stop.

Ray's own services (its store, scheduler, workers) listen on every interface, whatever the proxy is told: let nobody
reach the machines of a cluster but each other. A cluster that is started here asks for a token of its own that only
its processes know.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekit.errors import MissingExtraError, NodeError
from edgekit.runtimes.ray_engine.addresses import check_reached, free_port, in_url
from edgekit.runtimes.ray_engine.grpc_face import GrpcFace, through_handle
from edgekit.runtimes.ray_engine.options import RayOptions
from edgekit.runtimes.ray_engine.replica import Replica
from edgekit.runtimes.ray_engine.retry import ProxyOptions
from edgekit.runtimes.ray_engine.settings import (
    APPLICATION,
    check_cpus,
    check_gpus,
    deployment_settings,
    own_environment,
)
from edgekit.runtimes.ray_engine.staging import Deployed, Staging
from edgekit.runtimes.ray_engine.starting import POLL_S, START_S, start_proxies, start_ray

MAX_WORKERS = 512


def check_installed() -> None:
    """Raises MissingExtraError without Ray Serve."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("fastapi") is None:
        raise MissingExtraError("ray[serve]", "ray", "--engine ray")


class RayNode:
    """Deploys when entered or started; `update` rolls over to what the paths hold then. One in a process at a time."""

    def __init__(self, bundles: Sequence[Path], options: RayOptions = RayOptions()) -> None:
        """Raises MissingExtraError, NodeError (host, port, certificate, nothing to serve), BundleError, OutputError,
        UnreachableError (the cluster at the address)."""
        check_installed()
        options.node.security.check_host(options.node.host)
        options.node.security.check_certificate()
        if options.address:
            check_reached(options.address)
        else:
            check_cpus(options, options.cluster_cpus or os.cpu_count() or 1)
            options = replace(
                options, node=replace(options.node, port=free_port(options.node.host, options.node.port or 0))
            )
            if options.node.grpc_port:
                free_port(options.node.host, options.node.grpc_port, "--grpc-port")
        self.options, self.bundles = options, tuple(path.resolve() for path in bundles)
        self._staging = Staging(
            options.node.tier, options.node.key, copies=not options.address, parent=options.temp_dir
        )
        try:
            self.deployed = self._staging.stage(self.bundles)
        except BaseException:
            self._staging.close()
            raise
        self._started = False
        self._face: GrpcFace | None = None
        self._handle: Any = None

    @property
    def grpc_url(self) -> str:
        """ "" without a face over gRPC, and before the start."""
        if self._face is None:
            return ""
        scheme = "grpcs" if self.options.node.security.certificate else "grpc"
        return f"{scheme}://{in_url(self.options.node.host)}:{self._face.port}"

    @property
    def rest_url(self) -> str:
        node = self.options.node
        return f"{'https' if node.security.certificate else 'http'}://{in_url(node.host)}:{node.port}"

    def start(self) -> None:
        """Returns when the least number of replicas serve. Raises NodeError where they cannot; all is ended then."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        options, node = self.options, self.options.node
        settings = ProxyOptions(node.max_bytes, node.body_timeout_s, options.retry_s).environment()
        if not options.address:
            # Before Ray is imported, and left set: every later call needs the token too.
            os.environ.update({**settings, **own_environment()})
        import ray

        try:
            start_ray(options)
            self._started = True
            start_proxies(options, settings)
        except Exception as error:  # Ray raises no kind of its own here, but plain ones
            raise NodeError(f"Ray did not start: {_first_line(error)}", hint=_why_not(options)) from error
        if not options.address:
            check_gpus(options, ray.cluster_resources().get("GPU", 0.0))
        self._deploy(self.deployed)
        # Not before: gRPC has threads of its own, and a process that Ray forks from among them may die at once.
        if node.grpc_port is not None and not options.address:
            workers = min(MAX_WORKERS, options.replicas.most * options.max_ongoing + options.max_queued)
            self._face = GrpcFace(
                lambda *call: through_handle(self._handle)(*call),
                node.security,
                node.host,
                node.grpc_port,
                node.max_bytes,
                workers,
                options.retry_s,
            )
            self._face.start()

    def update(self, bundles: Sequence[Path] | None = None) -> bool:
        """Rolls over to what the paths (or `bundles`) hold now; requests meanwhile are answered by one or the other.

        False where nothing has changed. Raises BundleError, and NodeError where the new replicas do not come up: then
        the former bundles are deployed again, whose replicas have served all the while.
        """
        paths = self.bundles if bundles is None else tuple(path.resolve() for path in bundles)
        deployed = self._staging.stage(paths)
        if deployed == self.deployed:
            return False
        try:
            self._deploy(deployed)
        except NodeError:
            self._deploy(self.deployed)
            raise
        finally:
            self._staging.keep((*self.deployed, *deployed))
        self.bundles, self.deployed = paths, deployed
        return True

    def replicas(self) -> dict[str, int]:
        """State -> how many: RUNNING, STARTING, STOPPING ..."""
        from ray import serve

        application = serve.status().applications.get(APPLICATION)
        held = application.deployments.get(APPLICATION) if application is not None else None
        return {str(state): count for state, count in held.replica_states.items()} if held is not None else {}

    def stop(self) -> None:
        """Ends the application after what is inside, and the cluster where it was started here. A second call does
        nothing."""
        if self._face is not None:
            self._face.stop(self.options.grace_s)
        if self._started:
            self._started = False
            import ray
            from ray import serve

            if not self.options.address:
                serve.shutdown()
            ray.shutdown()
        self._staging.close()

    def _deploy(self, deployed: Sequence[Deployed]) -> None:
        from ray import serve
        from ray.serve.api import RunTarget

        bundles = [(str(entry.path), entry.digest) for entry in deployed]
        deployment = serve.deployment(**deployment_settings(self.options))(serve.ingress()(Replica))
        target = RunTarget(deployment.bind(bundles, self.options), name=APPLICATION, route_prefix="/")
        try:
            (self._handle,) = serve.run_many([target], wait_for_applications_running=False)
        except TimeoutError as error:
            raise NodeError(f"Ray did not deploy: {_first_line(error)}", hint=_why_not(self.options)) from error
        self._wait()

    def _wait(self) -> None:
        """Raises NodeError where the application does not run within START_S."""
        from ray import serve

        until = time.monotonic() + START_S
        while True:
            application = serve.status().applications.get(APPLICATION)
            state = str(getattr(application.status, "value", application.status)) if application else "NOT_STARTED"
            if state == "RUNNING":
                return
            if state == "DEPLOY_FAILED" or time.monotonic() > until:
                held = application.deployments.get(APPLICATION) if application else None
                said = (held.message if held else "") or (application.message if application else "")
                raise NodeError(
                    f"the replicas do not come up ({state}): {_last_line(said)}",
                    hint=f"has the cluster {self.options.cpus:g} CPUs and {self.options.gpus:g} GPUs for each, and the"
                    " bundle under the same path on every machine?",
                )
            time.sleep(POLL_S)

    def __enter__(self) -> RayNode:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _why_not(options: RayOptions) -> str:
    if options.address:
        return f"is the cluster at {options.address} gone, or of another version of Ray?"
    return "is the machine busy or short of memory, a port taken? Ray's own words lie in $RAY_TMPDIR or /tmp/ray: logs"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["Ray says nothing more"])[-1]
