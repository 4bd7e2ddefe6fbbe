"""`edgekit serve`"""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.bundle.manifest import TIERS
from edgekit.cli.command import command as make_command
from edgekit.cli.ending import Ending
from edgekit.cli.engine_options import engine_options, engine_text, opener, torch_options
from edgekit.cli.input_options import input_options, iteration_of, media_of
from edgekit.cli.options import FiniteRange, certificate_option, file_option, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.serve_ray import options_for, ray_options, refuse_ray_options, serve_on_ray
from edgekit.cli.settings_file import settings_option
from edgekit.errors import MissingExtraError

if TYPE_CHECKING:
    from edgekit.runtimes.server import Node, NodeOptions
    from edgekit.runtimes.server.model import ServedModel

# What a node imports at its start; zeroconf, OpenTelemetry and cryptography only where they are asked for.
PACKAGES = {
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "google_crc32c": "google-crc32c",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
}


@make_command(
    """
    edgekit serve cats.edgekit
    edgekit serve cats.edgekit --tier edge --port 8101 --grpc-port 8102 --upstream grpcs://cloud:8202
    edgekit serve cats.edgekit --host 0.0.0.0 --token-file token --tls cert.pem,key.pem --announce
    edgekit serve cats.edgekit dogs.edgekit --tier cloud --max-batch 32 --max-delay-ms 2 --threads 4
    edgekit serve cats.edgekit --tier cloud --engine torch --device cuda --precision bf16 --gpu-memory 20GB
    edgekit serve cats.edgekit --tier cloud --engine ray --replicas 2:8 --replica-cpus 2
    """,
    name="serve",
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@option(
    "--tier",
    heading="Listening",
    type=click.Choice(TIERS),
    default="edge",
    show_default=True,
    help="Whose parts are served; the cloud serves the edge's too.",
)
@engine_options
@ray_options
@option("--host", heading="Listening", default="127.0.0.1", show_default=True, help="Others need a token and TLS.")
@option(
    "--port",
    heading="Listening",
    type=click.IntRange(0, 65535),
    default=8101,
    show_default=True,
    metavar="N",
    help="REST; 0 takes a free one.",
)
@option(
    "--grpc-port",
    heading="Listening",
    type=click.IntRange(0, 65535),
    default=8102,
    show_default=True,
    metavar="N",
    help="gRPC; 0 takes a free one.",
)
@option("--announce", heading="Listening", is_flag=True, help="Let devices on the local network find this node.")
@file_option("--token-file", heading="Security", help="Callers must send the token in this file: one word.")
@certificate_option("--tls", heading="Security", help="PEM files: serve over TLS.")
@file_option("--client-ca", heading="Security", help="Callers must have a certificate of this authority.")
@file_option("--key", heading="Security", help="Serve only bundles that this public key signed.")
@option("--upstream", heading="Upstream", metavar="URL", help="The node above: grpc://host:port or grpcs://host:port.")
@file_option("--upstream-token-file", heading="Upstream", help="Its token; without, the one of --token-file.")
@file_option("--upstream-ca", heading="Upstream", help="The authority of its certificate; without, the system's.")
@certificate_option("--upstream-tls", heading="Upstream", help="Our certificate, where it asks for one.")
@settings_option(heading="Load", help="TOML, as `edgekit tune --out` writes it; options given here override it.")
@option(
    "--max-batch",
    heading="Load",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="N",
    help="Rows.",
)
@option(
    "--max-delay-ms",
    heading="Load",
    type=FiniteRange(0, 1000),
    default=0.0,
    show_default=True,
    metavar="F",
    help="Wait so long for more to run together; 0 takes what is there.",
)
@option(
    "--queue",
    heading="Load",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that may wait for a model; further ones are refused.",
)
@option(
    "--workers",
    heading="Load",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Batches of a model that run side by side, each in a session of its own.",
)
@option(
    "--deadline-ms",
    heading="Load",
    type=FiniteRange(0, 1e9, min_open=True),
    metavar="F",
    help="Of requests that bring none. Who is expected behind its deadline is refused at once.",
)
@option(
    "--degrade",
    heading="Load",
    is_flag=True,
    help="Before a request is refused, a coarser part of the bundle answers it, marked.",
)
@file_option("--tenants", heading="Load", help="TOML: who shares this node, by which token, and how much is theirs.")
@option(
    "--keep-versions",
    heading="Load",
    type=click.IntRange(0, 16),
    default=1,
    show_default=True,
    metavar="N",
    help="Of a bundle that is exchanged (SIGHUP), the earlier ones that stay served.",
)
@option(
    "--max-bytes",
    heading="Load",
    type=click.IntRange(1024, 1 << 30),
    default=16 << 20,
    show_default=True,
    metavar="N",
    help="Of a request.",
)
@option("--threads", heading="Load", type=click.IntRange(1), metavar="N", help="Of each model; every core without.")
@input_options
@option(
    "--grace",
    heading="Load",
    type=FiniteRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For what is inside when asked to end.",
)
@option(
    "--metrics/--no-metrics",
    "metrics",
    heading="Watching",
    default=True,
    show_default=True,
    help="Prometheus: /metrics.",
)
@file_option(
    "--trace",
    heading="Watching",
    help="Append OpenTelemetry spans to this file; `edgekit trace` reads it, or asks the node for its last.",
)
def command(out: Output, bundles: tuple[Path, ...], **settings: Any) -> None:
    """Serve the parts of each BUNDLE that are for this tier, until SIGTERM or Ctrl-C; then finish what is inside.
    SIGHUP serves what lies at the same paths by then, and loses no request.

    Speaks the Open Inference Protocol v2 over REST and gRPC. Traces also go to OTEL_EXPORTER_OTLP_ENDPOINT, where set.
    """
    _check_installed()
    from edgekit.runtimes.host import SWITCH_INTERVAL_S, collect_all_rarely
    from edgekit.runtimes.server import Node

    options = _options(settings)
    if settings["engine"] == "ray":
        serve_on_ray(out, list(bundles), options_for(options, settings))
        return
    refuse_ray_options(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    collect_all_rarely()
    ending, before = Ending(), signal.getsignal(signal.SIGHUP)
    wanted = threading.Event()
    try:
        with out.working() as progress:
            progress("load", 0, 0)
            node = Node(list(bundles), options)
        try:
            ending.listen()
            signal.signal(signal.SIGHUP, lambda number, frame: wanted.set())
            node.start()
            _tell(out, node, engine_text(torch_options(settings)))
            while True:
                wanted.wait()
                wanted.clear()
                _reload(out, node)
        except KeyboardInterrupt:
            out.remark("draining; Ctrl-C ends it at once")
        finally:
            ending.hurried(node.hurry)
            drained = node.stop(settings["grace"])
        out.remark("stopped" if drained else "stopped; some requests were cut off")
    finally:
        ending.restore()
        signal.signal(signal.SIGHUP, before)


def _reload(out: Output, node: Node) -> None:
    for outcome in node.reload():
        if outcome.error is not None:
            continue  # the catalog has logged it
        if outcome.version:
            out.remark(f"{outcome.path}: another bundle, served as version {outcome.version}")
        else:
            out.remark(f"{outcome.path}: unchanged")


def _check_installed() -> None:
    """Raises MissingExtraError for the first package of the extra `serve` that is not here."""
    for module, package in PACKAGES.items():
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise MissingExtraError(package, "serve", "serving")


def _options(settings: dict[str, Any]) -> NodeOptions:
    from edgekit.runtimes.protocol.client import ClientOptions
    from edgekit.runtimes.server import BatchOptions, NodeOptions, Security, read_tenants, read_token

    engine = torch_options(settings)
    token = read_token(settings["token_file"]) if settings["token_file"] else ""
    guests = read_tenants(settings["tenants"]) if settings["tenants"] else ()
    above = read_token(settings["upstream_token_file"]) if settings["upstream_token_file"] else token
    return NodeOptions(
        tier=settings["tier"],
        host=settings["host"],
        port=settings["port"],
        grpc_port=settings["grpc_port"],
        security=Security(token, settings["tls"], settings["client_ca"], guests),
        upstream=settings["upstream"],
        upstream_client=ClientOptions(above, settings["upstream_ca"], settings["upstream_tls"]),
        batch=BatchOptions(settings["max_batch"], settings["max_delay_ms"], settings["queue"], settings["workers"]),
        deadline_ms=settings["deadline_ms"],
        degrade=settings["degrade"],
        keep_versions=settings["keep_versions"],
        max_bytes=settings["max_bytes"],
        with_metrics=settings["metrics"],
        announce=settings["announce"],
        threads=settings["threads"],
        trace=settings["trace"],
        key=settings["key"],
        open_session=opener(engine),
        iteration=iteration_of(settings),
        media=media_of(settings),
    )


def _tell(out: Output, node: Node, engine: str) -> None:
    options, models = node.options, node.catalog.models
    out.emit(
        {
            "tier": options.tier,
            "engine": engine,
            "rest": node.rest_url,
            "grpc": node.grpc_url,
            "upstream": options.upstream,
            "announced": options.announce,
            "models": [
                {
                    "name": model.name,
                    "version": model.version,
                    "bundle": str(model.bundle.path),
                    "digest": model.bundle.digest,
                    "tier": model.part.tier,
                    "format": model.part.format,
                    "precision": model.part.precision,
                    "runs": _runs(model),
                    "batches": model.is_batchable,
                    "iterated": model.looped is not None,
                    "takes": list(model.alternatives),
                    "coarser": [part.name for part in model.levels[1:]],
                }
                for model in models
            ],
        }
    )
    above = [("upstream", options.upstream)] if options.upstream else []
    ends: list[tuple[str, str | Cell]] = [("tier", Cell(options.tier, "bold")), ("engine", engine)]
    out.table(facts([*ends, ("REST", node.rest_url), ("gRPC", node.grpc_url), *above]))
    out.line()
    columns = (Column("model", style="cyan"), Column("version"), Column("tier"), Column("runs"), Column("batches"))
    rows = [
        (
            m.name,
            m.version,
            m.part.tier,
            _runs(m),
            _batches(m),
        )
        for m in models
    ]
    out.table(Table(columns, rows))
    if options.degrade and not any(model.levels[1:] for model in models):
        out.remark("--degrade changes nothing here: no part has a coarser one of its tier that is faster")


def _runs(model: ServedModel) -> str:
    return model.runs or f"{model.part.format} {model.part.precision}"


def _batches(model: ServedModel) -> str:
    if model.looped is not None:
        return "step by step" if model.looped.rows.most is None else "step by step, one by one"
    return "yes" if model.is_batchable else "one by one"
