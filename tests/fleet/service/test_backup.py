"""A backup brings a fleet back whole, on either database, while the service runs; and never half of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from edgekit.errors import AuthenticationError, ConflictError, DataError, OutputError, StoreError
from edgekit.fleet.protocol.people import GroupOrder, PersonOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.registry.blobs import FolderBlobs
from edgekit.fleet.service import FleetService
from edgekit.fleet.service import backup as module
from edgekit.fleet.service.backup import restore_backup, write_backup
from edgekit.fleet.store import Database
from edgekit.fleet.store.lease import LEADER, Lease
from edgekit.fleet.store.rows import JUMP, dump, tables_of
from edgekit.fleet.store.schema import revisions, upgrade
from tests.fleet.acting import ADMIN, enroll, push, says, window
from tests.fleet.bundles import make_bundle
from tests.fleet.store.test_schema import fill_first

# Where nothing depends on the database.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "net", as_directory=True)


@pytest.fixture
def lived(fleet: FleetService, bundle: Path) -> FleetService:
    """A fleet with something of everything."""
    digest = push(fleet, bundle).digest
    for number in range(3):
        device = enroll(fleet, f"pi-{number}", {"board": "rpi4"}).device
        fleet.devices.sync(device, says(digest, window(0, digest, fleet.core.now())))
    fleet.groups.put(ADMIN, "pi", GroupOrder(selector="board=rpi4"))
    fleet.rollouts.start(ADMIN, RolloutOrder(bundle=digest, group="pi"))
    fleet.people.make(ADMIN, PersonOrder(name="bob", role="viewer"))
    return fleet


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Another fresh database, without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'other.db'}"
    found: str = request.getfixturevalue("empty_postgresql_url")
    return found


@pytest.fixture
def other(other_url: str) -> Iterator[Database]:
    database = Database(other_url)
    yield database
    database.close()


@pytest.fixture
def file_database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'file.db'}")
    yield database
    database.close()


def back_up(fleet: FleetService, path: Path, folder: Path) -> Path:
    write_backup(path, fleet.database, fleet.core.blobs, folder)
    return path


def rows_of(database: Database) -> dict[str, list[dict[str, object]]]:
    with database.engine.connect() as connection:
        return {table.name: [json.loads(line) for line in dump(connection, table)] for table in tables_of(connection)}


def test_a_fleet_comes_back_whole_on_either_database(lived: FleetService, other: Database, tmp_path: Path) -> None:
    before = rows_of(lived.database)
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    restore_backup(path, other, FolderBlobs(tmp_path / "new" / "blobs"), tmp_path / "new")
    after = rows_of(other)
    assert before["devices"] and before["windows"] and before["events"] and before["bundle_files"]
    for device in before["devices"]:
        device["generation"] = int(str(device["generation"])) + JUMP
        device["changed_tick"] = after["clock"][0]["tick"]
    before["clock"][0]["tick"] = int(str(before["clock"][0]["tick"])) + JUMP
    for rollout in before["rollouts"]:
        rollout |= {"state": "paused", "reason": after["rollouts"][0]["reason"]}
    assert after == before
    assert sorted(FolderBlobs(tmp_path / "new" / "blobs")) == sorted(lived.core.blobs)


def test_a_restored_fleet_goes_on(lived: FleetService, other_url: str, other: Database, tmp_path: Path) -> None:
    device = lived.devices.get("pi-0").id
    known = lived.devices.desired(device).generation
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    restore_backup(path, other, FolderBlobs(tmp_path / "new" / "blobs"), tmp_path / "new")
    restored = FleetService(tmp_path / "new", other_url, now=lived.core.now)
    digest = restored.bundles.find("net")
    assert restored.core.authority.pem == lived.core.authority.pem
    assert restored.devices.desired(device).generation > known  # every device hears of what is wanted now
    assert restored.devices.sync(device, says(digest, window(1, digest, lived.core.now()))).taken == 1
    rollout = restored.rollouts.get("latest")
    assert rollout.state == "paused" and "backup" in rollout.reason
    restored.rollouts.resume(ADMIN, rollout.id)
    restored.rollouts.advance()
    assert restored.people.make(ADMIN, PersonOrder(name="eve", role="viewer")).token
    assert restored.core.events(limit=1).items[0].subject == "eve"  # the counts of lines go on
    restored.close()


def test_it_is_of_one_moment_while_the_service_writes(fleet: FleetService, tmp_path: Path) -> None:
    """Every person has a line in the audit log, in every backup."""
    stop, made = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            made.append(fleet.people.make(ADMIN, PersonOrder(name=f"n{len(made)}", role="viewer")))

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for number in range(3):
            index, _ = write_backup(tmp_path / f"{number}", fleet.database, fleet.core.blobs, tmp_path / "data")
            other = Database(f"sqlite:///{tmp_path / f'{number}.db'}")
            restore_backup(tmp_path / f"{number}", other, fleet.core.blobs, tmp_path / f"new{number}")
            rows = rows_of(other)
            other.close()
            told = {row["subject"] for row in rows["events"] if row["action"] == "person.add"}
            assert {row["name"] for row in rows["people"]} == told
            assert len(rows["people"]) == index.rows["people"]
    finally:
        stop.set()
        writing.join(20)
    assert len(made) > 4


@on_sqlite
def test_the_file_is_for_its_owner_alone_and_is_not_written_over(lived: FleetService, tmp_path: Path) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    held = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        back_up(lived, path, tmp_path / "data")
    assert path.read_bytes() == held
    write_backup(path, lived.database, lived.core.blobs, tmp_path / "data", force=True)
    assert sorted(one.name for one in tmp_path.iterdir() if "backup" in one.name) == ["fleet.backup"]


@on_sqlite
def test_a_backup_that_fails_leaves_no_file_and_the_one_before(
    lived: FleetService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    held = path.read_bytes()
    sha256 = next(iter(lived.core.blobs))
    lived.core.blobs.remove(sha256)
    with pytest.raises(ConflictError, match=sha256[:16]):
        write_backup(path, lived.database, lived.core.blobs, tmp_path / "data", force=True)
    assert path.read_bytes() == held
    assert [one.name for one in tmp_path.iterdir() if "backup" in one.name] == ["fleet.backup"]


@on_sqlite
def test_a_damaged_file_of_a_bundle_is_found(lived: FleetService, tmp_path: Path) -> None:
    sha256 = next(iter(lived.core.blobs))
    blob = lived.core.blobs.path(sha256)
    blob.chmod(0o600)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    with pytest.raises(StoreError, match="damaged"):
        back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    assert not (tmp_path / "fleet.backup").exists()


@on_sqlite
def test_no_part_of_a_damaged_backup_is_restored(lived: FleetService, tmp_path: Path) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    whole = path.read_bytes()
    target, new = Database(f"sqlite:///{tmp_path / 'other.db'}"), tmp_path / "new"
    damaged = [whole[: len(whole) * share // 10] for share in range(10)]
    with tarfile.open(path) as tar:
        for member in tar:
            for at in {member.offset, member.offset_data + member.size // 2}:  # of its name, and of what it holds
                damaged.append(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    assert len(damaged) > 30
    for data in damaged:
        (tmp_path / "damaged").write_bytes(data)
        with pytest.raises(DataError):
            restore_backup(tmp_path / "damaged", target, FolderBlobs(new / "blobs"), new)
        assert not (new / "trust").exists() and not (tmp_path / "other.db").exists()
    target.close()


@on_sqlite
def test_a_fleet_in_use_is_not_replaced_without_force(
    lived: FleetService, file_database: Database, tmp_path: Path
) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    before = rows_of(lived.database)
    with pytest.raises(ConflictError, match="keys of a fleet"):
        restore_backup(path, file_database, lived.core.blobs, tmp_path / "data")
    with pytest.raises(ConflictError, match="devices"):
        restore_backup(path, lived.database, lived.core.blobs, tmp_path / "new")
    assert rows_of(lived.database) == before


def test_nothing_is_replaced_under_a_service_that_is_at_work(lived: FleetService, tmp_path: Path) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    leader = Lease(lived.database, LEADER)  # at the real time, as the service is
    assert leader.take()
    enroll(lived, "late")
    with pytest.raises(ConflictError, match="at work") as caught:
        restore_backup(path, lived.database, lived.core.blobs, tmp_path / "data", force=True)
    assert "stop it first" in caught.value.hint and lived.devices.get("late")
    leader.leave()
    restore_backup(path, lived.database, lived.core.blobs, tmp_path / "data", force=True)


def test_force_replaces_what_came_since(lived: FleetService, database_url: str, tmp_path: Path) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    late = enroll(lived, "late")
    lived.close()
    database = Database(database_url)
    restore_backup(path, database, FolderBlobs(tmp_path / "data" / "blobs"), tmp_path / "data", force=True)
    database.close()
    again = FleetService(tmp_path / "data", database_url, now=lived.core.now)
    assert [one.name for one in again.devices.list().items] == ["pi-0", "pi-1", "pi-2"]
    with pytest.raises(AuthenticationError):
        again.devices.identify(late.token)
    assert sorted(one.name for one in (tmp_path / "data").iterdir() if "trust" in one.name) == ["trust"]
    again.close()


@pytest.mark.parametrize("step", ["settle", "exchange"])
def test_a_restore_that_fails_leaves_what_was_there(
    lived: FleetService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    enroll(lived, "late")
    before = rows_of(lived.database)
    keys = {one.name: one.read_bytes() for one in (tmp_path / "data" / "trust").rglob("*") if one.is_file()}
    (tmp_path / "data" / "trust" / "mine").write_text("from before")
    if step == "settle":
        monkeypatch.setattr(module, "settle", lambda connection: 1 / 0)
    else:
        # Behind the exchange, at the commit: the database says no.
        real = module.settle

        def settle(connection: object) -> None:
            real(connection)  # type: ignore[arg-type]
            monkeypatch.setattr(type(connection), "_commit_impl", lambda self: 1 / 0)

        monkeypatch.setattr(module, "settle", settle)
    with pytest.raises(ZeroDivisionError):
        restore_backup(path, lived.database, lived.core.blobs, tmp_path / "data", force=True)
    monkeypatch.undo()
    assert rows_of(lived.database) == before
    held = {one.name: one.read_bytes() for one in (tmp_path / "data" / "trust").rglob("*") if one.is_file()}
    assert held == keys | {"mine": b"from before"}
    assert sorted(one.name for one in (tmp_path / "data").iterdir() if "trust" in one.name) == ["trust"]


CUT = """
import os, sys
from pathlib import Path
from edgekit.fleet.registry.blobs import FolderBlobs
from edgekit.fleet.service import backup
from edgekit.fleet.store import Database
real = backup.sync_folder
def sync(folder):
    real(folder)
    if folder == Path(sys.argv[2]):
        os._exit(9)
backup.sync_folder = sync
backup.restore_backup(
    Path(sys.argv[1]), Database(sys.argv[3]), FolderBlobs(Path(sys.argv[2]) / "blobs"), Path(sys.argv[2]), force=True
)
"""


def test_a_restore_that_is_cut_between_keys_and_rows_is_told_and_can_be_repeated(
    lived: FleetService, database_url: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    path = back_up(lived, tmp_path / "fleet.backup", data)
    enroll(lived, "late")
    lived.close()
    done = subprocess.run([sys.executable, "-c", CUT, str(path), str(data), database_url], timeout=60)
    assert done.returncode == 9
    with pytest.raises(StoreError, match="interrupted") as caught:
        FleetService(data, database_url)
    assert "--force" in caught.value.hint and (data / "trust.before").is_dir()
    database = Database(database_url)
    restore_backup(path, database, FolderBlobs(data / "blobs"), data, force=True)
    database.close()
    again = FleetService(data, database_url, now=lived.core.now)
    assert again.devices.count()[0] == 3
    again.close()


def test_a_backup_of_the_first_schema_comes_to_the_newest(other: Database, tmp_path: Path) -> None:
    old = Database(f"sqlite:///{tmp_path / 'old.db'}")
    upgrade(old.engine, "0001")
    with old.engine.begin() as connection:
        fill_first(connection)
        connection.execute(text("DELETE FROM bundle_files"))
    write_backup(tmp_path / "fleet.backup", old, FolderBlobs(tmp_path / "blobs"), tmp_path / "data")
    old.close()
    restore_backup(tmp_path / "fleet.backup", other, FolderBlobs(tmp_path / "blobs"), tmp_path / "new")
    rows = rows_of(other)
    assert rows["devices"][0]["labels"] == {"board": "rpi4"} and rows["devices"][0]["next_serial"] is None
    other.create()


@on_sqlite
def test_a_backup_of_a_newer_edgekit_is_refused(
    lived: FleetService, file_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    monkeypatch.setattr(module, "known_revisions", lambda: frozenset({"0001"}))
    with pytest.raises(DataError, match="knows up to") as caught:
        restore_backup(path, file_database, FolderBlobs(tmp_path / "new" / "blobs"), tmp_path / "new")
    assert "edgekit" in caught.value.hint and revisions().get_current_head()


def test_a_backup_replaces_what_a_newer_edgekit_left(lived: FleetService, tmp_path: Path) -> None:
    """As the refusal of such a database advises."""
    path = back_up(lived, tmp_path / "fleet.backup", tmp_path / "data")
    with lived.database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9998'"))
        connection.execute(text("CREATE TABLE of_later (id INTEGER PRIMARY KEY)"))
    with pytest.raises(StoreError, match="newer"):
        lived.database.create()
    restore_backup(path, lived.database, lived.core.blobs, tmp_path / "data", force=True)
    lived.database.create()
    assert lived.devices.list().items and "of_later" not in rows_of(lived.database)


def test_text_of_all_kinds_and_empty_values_survive(fleet: FleetService, other: Database, tmp_path: Path) -> None:
    odd = {"text": 'Zürich \u2028 \U0001f600 \\ " \n', "none": None, "list": [1, 2.5, True, {}], "": ""}
    with fleet.database.write() as session:
        fleet.core.note(session, "ada", "odd", "x" * 200, **odd)
    path = back_up(fleet, tmp_path / "fleet.backup", tmp_path / "data")
    restore_backup(path, other, fleet.core.blobs, tmp_path / "new")
    event = next(row for row in rows_of(other)["events"] if row["action"] == "odd")
    assert event["detail"] == odd
    device = enroll(fleet, "pi").device
    with fleet.database.read() as session:  # NULL stays NULL, not JSON's null
        assert session.scalar(select(text("count(*)")).select_from(text("devices")).where(text("plan IS NULL"))) == 1
    write_backup(path, fleet.database, fleet.core.blobs, tmp_path / "data", force=True)
    restore_backup(path, other, fleet.core.blobs, tmp_path / "new", force=True)
    with other.engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM devices WHERE plan IS NULL")).scalar_one() == device


def test_a_file_that_is_no_backup_is_told(tmp_path: Path, file_database: Database) -> None:
    for name, data in (
        ("empty", b""),
        ("text", b"hello" * 1000),
        ("zeros", bytes(20_480)),
        ("bundle", os.urandom(5000)),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError):
            restore_backup(tmp_path / name, file_database, FolderBlobs(tmp_path / "blobs"), tmp_path / "new")
    with pytest.raises(DataError, match="cannot read"):
        restore_backup(tmp_path / "nothing", file_database, FolderBlobs(tmp_path / "blobs"), tmp_path / "new")
