"""`edgekit serve --engine ray`: its own options, and what becomes of the others."""

from __future__ import annotations

import io
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgekit.cli.ending import Ending
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.runtimes.ray_engine import RayNode, RayOptions
    from edgekit.runtimes.server import NodeOptions

logger = logging.getLogger("edgekit")

# Setting -> option. Of Ray alone; and what a node has that a replica behind Ray's proxy has not.
OWN = {
    "replicas": "--replicas",
    "replica_cpus": "--replica-cpus",
    "replica_gpus": "--replica-gpus",
    "ray_address": "--ray-address",
}
FOREIGN = {
    "announce": ("--announce", "what is found is a node, not a cluster"),
    "keep_versions": ("--keep-versions", "a rolling update leaves one version"),
    "metrics": ("--metrics", "Ray exports metrics of its own, and one replica's page says nothing of the others"),
}


def ray_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --replicas, --replica-cpus, --replica-gpus and --ray-address."""
    for one in reversed(
        (
            option(
                "--replicas", heading="Ray", metavar="N|MIN:MAX", help="So many nodes, or by load between two numbers."
            ),
            option(
                "--replica-cpus",
                heading="Ray",
                type=FiniteRange(0, min_open=True),
                metavar="F",
                help="What Ray sets aside for each; 1 without. Also its threads.",
            ),
            option("--replica-gpus", heading="Ray", type=FiniteRange(0), metavar="F", help="The same of GPUs."),
            option(
                "--ray-address",
                heading="Ray",
                metavar="ADDRESS",
                help="Hand the bundles to this cluster and return: auto, or host:port. Starts one here without.",
            ),
        )
    ):
        function = one(function)
    return function


def refuse_ray_options(settings: dict[str, Any]) -> None:
    """Raises UsageError where another engine is given what is Ray's."""
    for name, word in OWN.items():
        if settings[name] is not None:
            raise UsageError(f"{word} without the engine ray", hint="--engine ray, or leave it out")


def options_for(node: NodeOptions, settings: dict[str, Any]) -> RayOptions:
    """Raises UsageError for options that Ray has no use for."""
    from dataclasses import replace

    from edgekit.runtimes.ray_engine import RayOptions, Replicas

    for name, (word, why) in FOREIGN.items():
        if _is_given(name) and settings[name] is not False:
            raise UsageError(f"{word} with --engine ray: {why}", hint="leave it out")
    if settings["ray_address"] and _is_given("grpc_port"):
        raise UsageError("--grpc-port with --ray-address: there it is REST alone", hint="leave it out")
    return RayOptions(
        replace(node, grpc_port=None) if settings["ray_address"] else node,
        Replicas.parse(settings["replicas"] or "1"),
        cpus=settings["replica_cpus"] or 1.0,
        gpus=settings["replica_gpus"] or 0.0,
        grace_s=settings["grace"],
        address=settings["ray_address"] or "",
    )


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) not in (None, ParameterSource.DEFAULT)


def serve_on_ray(out: Output, bundles: list[Path], options: RayOptions) -> None:
    """Until SIGTERM or Ctrl-C; SIGHUP rolls over to what lies at the paths by then. With an address it returns."""
    from edgekit.runtimes.ray_engine import RayNode

    ending, before = Ending(), signal.getsignal(signal.SIGHUP)
    wanted = threading.Event()
    try:
        with out.working() as progress:
            progress("read the bundles", 0, 0)
            node = RayNode(bundles, options)
            progress("start Ray", 0, 0)
            try:
                node.start()
            except BaseException:
                node.stop()
                raise
        try:
            # Ray has put its own in their place.
            ending.listen()
            signal.signal(signal.SIGHUP, lambda number, frame: wanted.set())
            _tell(out, node)
            if options.address:
                out.remark("handed over; `serve shutdown` of Ray's own command line ends it")
                return
            out.remark("some of Ray's own services listen on every interface: keep others off this machine's ports")
            while True:
                wanted.wait()
                wanted.clear()
                _update(out, node)
        except KeyboardInterrupt:
            out.remark("draining")
        finally:
            with _ray_unheard():
                node.stop()
        out.remark("stopped")
    finally:
        ending.restore()
        signal.signal(signal.SIGHUP, before)


@contextmanager
def _ray_unheard() -> Iterator[None]:
    """Ray prints on stdout which of its own tasks end with it; -v has it in the log."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        for line in filter(None, said.getvalue().splitlines()):
            logger.info("Ray: %s", line)


def _update(out: Output, node: RayNode) -> None:
    before = _names(node)
    try:
        out.remark("rolled over" if node.update() else "unchanged")
    except EdgekitError as error:
        out.remark(f"{error.message}; what was served stays")
        return
    gone, come = (sorted(one) for one in (before - _names(node), _names(node) - before))
    if gone:
        out.warn(
            f"another bundle by name: {', '.join(gone)} is answered with 404 from now on, as {', '.join(come)} was by "
            "the replicas that went",
            hint="keep the name of a bundle that is exchanged, or serve the other one beside it",
        )


def _names(node: RayNode) -> set[str]:
    return {name for entry in node.deployed for name in entry.models}


def _tell(out: Output, node: RayNode) -> None:
    options = node.options
    held = zip(node.bundles, node.deployed, strict=True)
    models = [(name, path, entry.digest) for path, entry in held for name in entry.models]
    out.emit(
        {
            "tier": options.node.tier,
            "engine": "ray",
            "rest": node.rest_url,
            "grpc": node.grpc_url,
            "replicas": {"least": options.replicas.least, "most": options.replicas.most},
            "target_ongoing": options.target_ongoing,
            "models": [{"name": name, "bundle": str(path), "digest": digest} for name, path, digest in models],
        }
    )
    rows: list[tuple[str, str | Cell]] = [
        ("tier", Cell(options.node.tier, "bold")),
        ("engine", "ray"),
        ("REST", node.rest_url),
    ]
    rows += [("gRPC", node.grpc_url)] if node.grpc_url else []
    out.table(facts([*rows, ("replicas", str(options.replicas))]))
    out.line()
    out.table(
        Table((Column("model", style="cyan"), Column("digest")), [(name, digest[:16]) for name, _, digest in models])
    )
