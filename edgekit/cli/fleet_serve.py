"""`edgekit fleet serve`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.options import certificate_option, file_option, option
from edgekit.cli.output import Cell, Output, facts
from edgekit.errors import MissingExtraError


def default_data() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgekit" / "fleet"


@make_command(
    """
    edgekit fleet serve
    edgekit fleet serve --host 0.0.0.0 --tls
    edgekit fleet serve --db postgresql+psycopg://fleet@127.0.0.1/fleet
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
@file_option("--key", heading="Security", help="Take only bundles that this public key signed.")
def serve(out: Output, **settings: Any) -> None:
    """Run the service until SIGTERM or Ctrl-C. The first start tells the first admin's token, once."""
    try:
        from edgekit.fleet.registry.s3 import open_blobs
        from edgekit.fleet.server.run import Listening, make_server, open_socket
        from edgekit.fleet.service import FleetService
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "fleet", "serving a fleet") from error
    files = settings["tls_files"]
    listening = Listening(settings["host"], settings["port"], settings["tls"] or files is not None, files)
    listening.check()
    folder = settings["data"] or default_data()
    blobs = None if settings["blobs"] is None else open_blobs(settings["blobs"], folder / "blobs")
    service = FleetService(folder, settings["db"], blobs=blobs, key=settings["key"])
    try:
        server = make_server(service, listening)
        with open_socket(listening.host, listening.port) as listener:
            port = listener.getsockname()[1]
            _tell(out, service, listening, port, folder)
            server.run(sockets=[listener])
    finally:
        service.close()


def _tell(out: Output, service: Any, listening: Any, port: int, folder: Path) -> None:
    url = f"{'https' if listening.tls else 'http'}://{listening.host}:{port}"
    token = service.people.found()
    authority = service.core.authority.certificate_path if listening.tls else None
    told = {"url": url, "data": str(folder), "database": service.database.url.render_as_string(), "token": token}
    out.emit({**told, "authority": None if authority is None else str(authority)})
    rows: list[tuple[str, str | Cell]] = [("fleet", Cell(url, "bold")), ("data", str(folder))]
    rows.append(("database", service.database.url.render_as_string()))
    if authority is not None:
        rows.append(("authority", f"{authority}: agents and people give it as --ca"))
    if token is not None:
        rows.append(("token", Cell(f"{token}  (of admin; told this once)", "yellow")))
    out.table(facts(rows))
    out.remark(f"next: edgekit fleet push FILE.edgekit --fleet {url}")
