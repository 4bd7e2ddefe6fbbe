"""Backup and restore of a whole fleet: rows, files of bundles, keys; between SQLite and PostgreSQL as well.

A backup is made while the service runs: rows are read in one transaction. A restore replaces all or nothing: files of
bundles are added beforehand, which harms nobody; the rows change in one transaction, and right before its end the
folder of keys is exchanged by renaming.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection, select

from edgekit.bundle.write import sync_folder
from edgekit.errors import ConflictError, DataError, OutputError, StoreError
from edgekit.fleet.registry.blobs import Blobs
from edgekit.fleet.store.backup_file import FORMAT, MEMBER, BackupIndex, BackupWriter
from edgekit.fleet.store.backup_reader import BackupReader
from edgekit.fleet.store.database import Database, told
from edgekit.fleet.store.lease import LEADER, VALID_S, Lease
from edgekit.fleet.store.rows import count, dump, load, settle, tables_of
from edgekit.fleet.store.schema import alone, current, drop_all, head, known_revisions, migrate, stored
from edgekit.fleet.store.tables import BundleFile
from edgekit.progress import Progress, silent

TRUST, STAGED, BEFORE, HALF = "trust", "trust.restoring", "trust.before", "trust.half"
SHOWN_EVERY = 1000  # rows
USED = ("people", "devices", "bundles", "groups")  # a fleet that nobody has used has none of them


def write_backup(
    path: Path, database: Database, blobs: Blobs, folder: Path, *, force: bool = False, progress: Progress = silent
) -> tuple[BackupIndex, int]:
    """What is in it, and its size in bytes. `folder`: of the service's data.

    Raises OutputError where the file exists (without `force`) or cannot be written, StoreError, ConflictError where a
    bundle goes while it is copied.
    """
    if path.exists() and not force:
        raise OutputError(f"{path} exists", hint="give another name, or --force")
    if database.path is not None and not database.path.is_file():
        raise StoreError(f"there is no database {database.path}", hint="--data and --db are those of the service")
    with BackupWriter(path) as writer:
        keys = _read_trust(folder / TRUST)
        with database.read() as session:
            connection = session.connection()
            revision = current(connection)
            if revision is None:
                raise StoreError("the database is empty", hint="--data and --db are those of the service")
            rows = _write_rows(writer, connection, progress)
            files = connection.execute(select(BundleFile.sha256).distinct().order_by(BundleFile.sha256)).scalars().all()
        if _read_trust(folder / TRUST) != keys:
            raise ConflictError("keys were changed while the backup was made", hint="make it again")
        for name, data in keys.items():
            writer.add(name, len(data), [data])
        _write_blobs(writer, files, blobs, progress)
        index = BackupIndex(
            format=FORMAT,
            edgekit=importlib.metadata.version("edgekit"),
            database="sqlite" if database.is_sqlite else "postgresql",
            revision=revision,
            made_at=time.time(),
            rows=rows,
            members=writer.members,
        )
        return index, writer.finish(index)


def _write_rows(writer: BackupWriter, connection: Connection, progress: Progress) -> dict[str, int]:
    tables = tables_of(connection)
    rows = {table.name: count(connection, table) for table in tables}
    done, total = 0, sum(rows.values())
    for table in tables:
        lines = _counted(dump(connection, table), done, total, progress)
        writer.add_lines(f"tables/{table.name}.jsonl.gz", lines)
        done += rows[table.name]
    return rows


def _counted(lines: Iterator[bytes], done: int, total: int, progress: Progress) -> Iterator[bytes]:
    """`done` of `total` before the first of them."""
    for number, line in enumerate(lines):
        if number % SHOWN_EVERY == 0:
            progress("rows", done + number, total)
        yield line


def _read_trust(folder: Path) -> dict[str, bytes]:
    named = ((f"{TRUST}/{path.relative_to(folder).as_posix()}", path) for path in sorted(folder.rglob("*")))
    return {name: path.read_bytes() for name, path in named if path.is_file() and MEMBER.fullmatch(name)}


def _write_blobs(writer: BackupWriter, files: Sequence[str], blobs: Blobs, progress: Progress) -> None:
    for number, sha256 in enumerate(files):
        progress("files of bundles", number, len(files))
        size = blobs.size(sha256)
        try:
            if size is None:
                raise KeyError(sha256)
            writer.add(f"blobs/{sha256}", size, blobs.read(sha256))
        except (KeyError, FileNotFoundError):
            raise ConflictError(
                f"the file {sha256[:16]} of a bundle is not there: was the bundle removed just now?",
                hint="make the backup again; if it stays, push that bundle again",
            ) from None
        if writer.members[f"blobs/{sha256}"].sha256 != sha256:
            raise StoreError(f"the file {sha256[:16]} of a bundle is damaged", hint="push that bundle again")


def restore_backup(
    path: Path, database: Database, blobs: Blobs, folder: Path, *, force: bool = False, progress: Progress = silent
) -> BackupIndex:
    """Everything in it replaces what is there. On failure what was there is there still.

    Raises DataError for what is no whole backup, ConflictError where a service is at work on the target, or it holds a
    fleet (without `force`), StoreError.
    """
    with BackupReader(path, lambda done, total: progress("comparing hashes", done, total)) as backup:
        refuse_at_work(database)
        if not force:
            refuse_used(database, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _stage_trust(backup, folder / STAGED)
            _add_blobs(backup, blobs, progress)
            with _exchanging(folder) as exchange, told(), alone(database.engine) as connection:
                _replace_rows(backup, connection, progress)
                settle(connection)
                exchange()
        except OSError as error:
            raise StoreError(
                f"cannot use {folder}: {error.strerror or error}", hint="make room, and try again"
            ) from error
        finally:
            shutil.rmtree(folder / STAGED, ignore_errors=True)
        return backup.index


def refuse_at_work(database: Database) -> None:
    """Raises ConflictError where a service leads there: it would go on with what it has in memory."""
    if _is_made(database) and Lease(database, LEADER).is_held():
        raise ConflictError(
            "a service is at work on this database",
            hint=f"stop it first; one that was killed is gone in {VALID_S:.0f} s",
        )


def _is_made(database: Database) -> bool:
    """Whether it has edgekit's tables; a SQLite file is not made by asking. Raises StoreError for others' tables."""
    if database.path is not None and not database.path.exists():
        return False
    with told(), database.engine.connect() as connection:
        return stored(connection) is not None


def refuse_used(database: Database, folder: Path) -> None:
    """Raises ConflictError where there is a fleet already, StoreError for a database that is none of edgekit's."""
    there = None
    if any((folder / TRUST).rglob("*")):
        there = f"{folder} holds the keys of a fleet"
    elif database.path is None or database.path.exists():
        with told(), database.engine.connect() as connection:
            if current(connection) is not None:
                used = [
                    table.name for table in tables_of(connection) if table.name in USED and count(connection, table)
                ]
                there = f"the database holds {', '.join(used)}" if used else None
    if there is not None:
        raise ConflictError(there, hint="--force replaces it by the backup; make a backup of it first")


def refuse_half_restored(folder: Path) -> None:
    """Raises StoreError where a restore was cut between its last two steps."""
    if (folder / BEFORE).exists():
        raise StoreError(
            f"a restore into {folder} was interrupted",
            hint=f"run edgekit fleet restore again with --force; the keys from before are in {BEFORE}",
        )


def _stage_trust(backup: BackupReader, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name in backup.index.members:
        if name.startswith(f"{TRUST}/"):
            path = folder / name.removeprefix(f"{TRUST}/")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            with path.open("wb") as stream:
                for chunk in backup.read(name):
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
    sync_folder(folder)


def _add_blobs(backup: BackupReader, blobs: Blobs, progress: Progress) -> None:
    files = backup.index.blobs
    for number, sha256 in enumerate(files):
        progress("files of bundles", number, len(files))
        if blobs.size(sha256) is None:
            blobs.remove(sha256)  # what is on its way there
            blobs.append(sha256, 0, backup.size(f"blobs/{sha256}"), backup.read(f"blobs/{sha256}"))


def _replace_rows(backup: BackupReader, connection: Connection, progress: Progress) -> None:
    revision = backup.index.revision
    if revision not in known_revisions():
        raise DataError(
            f"the backup has the schema {revision}, this edgekit knows up to {head()}",
            hint=f"restore it with edgekit {backup.index.edgekit}",
        )
    drop_all(connection)
    migrate(connection, revision)
    rows, done = backup.index.rows, 0
    for table in tables_of(connection):
        name, expected = f"tables/{table.name}.jsonl.gz", rows.get(table.name, 0)
        if name not in backup.index.members:
            raise DataError(f"the backup lacks {table.name}", hint="take another one")
        loaded = load(connection, table, _counted(backup.lines(name), done, sum(rows.values()), progress))
        if loaded != expected:
            raise DataError(
                f"the backup has {loaded} rows of {table.name}, its index says {expected}", hint="take another one"
            )
        done += loaded
    migrate(connection)


@contextlib.contextmanager
def _exchanging(folder: Path) -> Iterator[Callable[[], None]]:
    """Gives what puts the new keys in the place of the old ones; they are put back where it ends with an error."""
    trust, staged = folder / TRUST, folder / STAGED
    # A restore that was cut left the first keys in BEFORE: they stay until one is through.
    aside = folder / (HALF if (folder / BEFORE).exists() else BEFORE)
    exchanged = False

    def exchange() -> None:
        nonlocal exchanged
        shutil.rmtree(folder / HALF, ignore_errors=True)
        if trust.exists():
            trust.rename(aside)
        exchanged = True
        staged.rename(trust)
        sync_folder(folder)

    try:
        yield exchange
    except BaseException:
        if exchanged:
            if trust.exists():
                trust.rename(staged)
            if aside.exists():
                aside.rename(trust)
        raise
    for name in (BEFORE, HALF):
        shutil.rmtree(folder / name, ignore_errors=True)
