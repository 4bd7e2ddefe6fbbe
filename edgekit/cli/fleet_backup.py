"""`edgekit fleet backup` and `edgekit fleet restore`: on the machine of the service, beside it or without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_serve import default_data
from edgekit.cli.options import option
from edgekit.cli.output import Output, facts
from edgekit.errors import MissingExtraError, StoreError

if TYPE_CHECKING:
    from edgekit.fleet.registry.blobs import Blobs
    from edgekit.fleet.store.backup_file import BackupIndex
    from edgekit.fleet.store.database import Database


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--db, --data, --blobs: as `fleet serve` has them."""
    for decorate in (
        option("--force", heading="Storage", is_flag=True, help="Replace what is there."),
        option("--blobs", heading="Storage", metavar="URL", help="s3://bucket/prefix; a folder in --data without."),
        option(
            "--data",
            heading="Storage",
            type=click.Path(path_type=Path),
            metavar="FOLDER",
            help="Of the service.  [default: ~/.local/share/edgekit/fleet]",
        ),
        option("--db", heading="Storage", metavar="URL", help="Of its database; a SQLite file in the folder without."),
    ):
        command = decorate(command)
    return command


@make_command(
    """
    edgekit fleet backup fleet.backup
    edgekit fleet backup fleet.backup --db postgresql+psycopg://fleet@127.0.0.1/fleet
    """,
    name="backup",
)
@click.argument("file", type=click.Path(path_type=Path))
@place_options
def backup(out: Output, file: Path, **settings: Any) -> None:
    """Write database, bundles and keys into one file, as of one moment; the service may go on meanwhile.

    Whoever has the file has the keys of the fleet: keep it as safe as those.
    """
    with _places(settings, there=True) as (database, blobs, folder), out.working() as progress:
        from edgekit.fleet.service.backup import write_backup

        index, size = write_backup(file, database, blobs, folder, force=settings["force"], progress=progress)
    _tell(out, "backup", file, index, size)
    out.remark("it holds the fleet's keys: keep it safe")


@make_command(
    """
    edgekit fleet restore fleet.backup --data new
    edgekit fleet restore fleet.backup --db postgresql+psycopg://fleet@127.0.0.1/fleet --force
    """,
    name="restore",
)
@click.argument("file", type=click.Path(path_type=Path))
@place_options
def restore(out: Output, file: Path, **settings: Any) -> None:
    """Put a backup in the place of a fleet; stop the service first. All of it is checked before anything changes.

    The database may be of the other kind than the one it came from. Rollouts that were under way come back paused.
    """
    with _places(settings, there=False) as (database, blobs, folder), out.working() as progress:
        from edgekit.fleet.service.backup import restore_backup

        index = restore_backup(file, database, blobs, folder, force=settings["force"], progress=progress)
    _tell(out, "restored", file, index, file.stat().st_size)
    out.remark("next: edgekit fleet serve; devices that enrolled after the backup have to enrol again")


@contextmanager
def _places(settings: dict[str, Any], *, there: bool) -> Iterator[tuple[Database, Blobs, Path]]:
    """`there`: the folder must be. Raises StoreError where it is not, or cannot be made."""
    try:
        from edgekit.fleet.registry.s3 import open_blobs
        from edgekit.fleet.store import Database
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "sqlalchemy", "fleet", "a fleet's database") from error
    folder = settings["data"] or default_data()
    if there and not folder.is_dir():
        raise StoreError(f"there is no folder {folder}", hint="--data is that of the service")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(f"cannot use {folder}: {error.strerror}", hint="choose another --data folder") from error
    database = Database(settings["db"] or f"sqlite:///{folder / 'fleet.db'}")
    try:
        yield database, open_blobs(settings["blobs"], folder / "blobs"), folder
    finally:
        database.close()


def _tell(out: Output, what: str, file: Path, index: BackupIndex, size: int) -> None:
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(index.made_at))
    devices, rows = index.rows.get("devices", 0), sum(index.rows.values())
    told = {"made_at": index.made_at, "database": index.database, "schema": index.revision, "edgekit": index.edgekit}
    counts = {"size_bytes": size, "rows": index.rows, "blobs": len(index.blobs)}
    out.emit({what: {"file": str(file), **told, **counts}})
    out.table(
        facts(
            [
                (what, str(file)),
                ("made", f"{made}, by edgekit {index.edgekit} on {index.database}, schema {index.revision}"),
                ("holds", f"{devices} devices, {rows} rows, {len(index.blobs)} files of bundles, {size / 1e6:.1f} MB"),
            ]
        )
    )
