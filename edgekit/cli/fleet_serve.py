"""`edgekit fleet serve`"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.options import FiniteRange, certificate_option, file_option, option
from edgekit.cli.output import Cell, Output, facts
from edgekit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import socket

    from edgekit.fleet.server.run import Listening
    from edgekit.fleet.service import FleetService
    from edgekit.fleet.service.retention import Keeping


def default_data() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgekit" / "fleet"


@make_command(
    """
    edgekit fleet serve
    edgekit fleet serve --host 0.0.0.0 --tls
    edgekit fleet serve --db postgresql+psycopg://fleet@127.0.0.1/fleet --workers 4
    """,
    name="serve",
)
@option("--host", heading="Listening", default="127.0.0.1", show_default=True, help="Others need --tls.")
@option(
    "--port",
    heading="Listening",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="0 takes a free one.",
)
@option(
    "--tls-name",
    "tls_names",
    heading="Listening",
    multiple=True,
    metavar="NAME",
    help="A name or address by which it is reached, for --tls; repeatable. The host's own are in it.",
)
@option("--tls", heading="Listening", is_flag=True, help="With a certificate of the fleet's own authority.")
@certificate_option("--tls-files", heading="Listening", help="PEM files of a certificate of yours.")
@option("--db", heading="Storage", metavar="URL", help="Of the database; a SQLite file in the data folder without.")
@option(
    "--data",
    heading="Storage",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Bundles, keys and the SQLite file.  [default: ~/.local/share/edgekit/fleet]",
)
@option(
    "--blobs",
    heading="Storage",
    metavar="URL",
    help="Keep bundles there: s3://bucket/prefix, with ?endpoint=https://host:9000 for a store of your own.",
)
@option(
    "--workers",
    heading="Storage",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the port; several want PostgreSQL, and up to 16 connections each.",
)
@option(
    "--keep-windows",
    heading="Storage",
    type=FiniteRange(min=0),
    default=14.0,
    show_default=True,
    metavar="DAYS",
    help="What devices told of themselves, some 3.5 MB a day and device; 0 for ever.",
)
@option(
    "--most-windows",
    heading="Storage",
    type=click.IntRange(min=0),
    default=20_000_000,
    show_default=True,
    metavar="N",
    help="Of the whole fleet, some 24 GB; the oldest go first. 0 bounds them by days alone.",
)
@option(
    "--keep-events",
    heading="Storage",
    type=FiniteRange(min=0),
    default=400.0,
    show_default=True,
    metavar="DAYS",
    help="The audit log; 0 for ever.",
)
@file_option("--key", heading="Security", help="Take only bundles that this public key signed.")
def serve(out: Output, **settings: Any) -> None:
    """Run the service until SIGTERM or Ctrl-C. The first start tells the first admin's token, once."""
    try:
        from edgekit.fleet.registry.s3 import open_blobs
        from edgekit.fleet.server.run import Listening, make_server
        from edgekit.fleet.server.shared_counts import forget, shared_counts
        from edgekit.fleet.server.workers import Workers, leave_at
        from edgekit.fleet.service import FleetService
        from edgekit.fleet.store.alone import alone
        from edgekit.runtimes.listening import open_socket
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "fleet", "serving a fleet") from error
    files = settings["tls_files"]
    listening = Listening(
        settings["host"], settings["port"], settings["tls"] or files is not None, files, settings["tls_names"]
    )
    listening.check()
    folder, many = settings["data"] or default_data(), settings["workers"] > 1
    if many and not (settings["db"] or "sqlite").startswith("postgresql"):
        raise UsageError(
            f"{settings['workers']} workers on SQLite, allowed 1", hint="--db postgresql+psycopg://user@host/fleet"
        )

    def open_service() -> FleetService:
        blobs = None if settings["blobs"] is None else open_blobs(settings["blobs"], folder / "blobs")
        return FleetService(folder, settings["db"], blobs=blobs, key=settings["key"], keeping=_keeping(settings))

    service = open_service()
    try:
        server = make_server(service, listening)
        with alone(service.database), open_socket(listening.host, listening.port) as listener:
            _tell(out, service, listening, listener.getsockname()[1], folder)
            if many:
                service.close()
                with shared_counts():
                    Workers(settings["workers"], lambda: _work(open_service(), listening, listener), forget).run()
            else:
                leave_at(signal.SIGTERM)
                server.run(sockets=[listener])
    finally:
        service.close()


def _work(service: FleetService, listening: Listening, listener: socket.socket) -> None:
    from edgekit.fleet.server.run import make_server

    try:
        make_server(service, listening).run(sockets=[listener])
    finally:
        service.close()


def _keeping(settings: dict[str, Any]) -> Keeping:
    from edgekit.fleet.service.retention import DAY_S, Keeping

    return Keeping(
        windows_s=settings["keep_windows"] * DAY_S,
        windows_most=settings["most_windows"],
        events_s=settings["keep_events"] * DAY_S,
    )


def url_of(listening: Listening, port: int) -> str:
    """By which others reach it: what stands for all addresses of a host is none of them."""
    import socket

    host = listening.host
    if host in ("", "0.0.0.0", "::"):
        host = listening.names[0] if listening.names else socket.gethostname()
    return f"{'https' if listening.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _tell(out: Output, service: Any, listening: Listening, port: int, folder: Path) -> None:
    url = url_of(listening, port)
    token = service.people.found()
    authority = service.core.authority.certificate_path if listening.tls else None
    told = {"url": url, "data": str(folder), "database": service.database.url.render_as_string(), "token": token}
    out.emit({**told, "authority": None if authority is None else str(authority)})
    rows: list[tuple[str, str | Cell]] = [("fleet", Cell(url, "bold")), ("data", str(folder))]
    rows.append(("database", service.database.url.render_as_string()))
    if authority is not None:
        rows.append(("authority", f"{authority}: for people, as --ca; agents know it by their invitation"))
    if token is not None:
        rows.append(("token", Cell(f"{token}  (of admin; told this once)", "yellow")))
    out.table(facts(rows))
    out.remark(f"next: edgekit fleet push FILE.edgekit --fleet {url}")
