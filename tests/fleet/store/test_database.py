"""Transactions: one after the other, whole or not at all, and what a database complains of in our own words."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update

from edgekit.errors import ConflictError, StoreError, UsageError
from edgekit.fleet.store import Database
from edgekit.fleet.store import database as module
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Event, Group, Person


def person(name: str, token: str = "") -> Person:
    return Person(name=name, role="viewer", token_hash=token or name, created_at=0.0)


def names(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Person.name).order_by(Person.name)))


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:///", "sqlite:///:memory:", "postgresql://x/y", "no url"])
def test_other_databases_are_refused_and_the_hint_shows_a_url(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Database(url)
    assert "sqlite:///fleet.db" in caught.value.hint


def test_a_change_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.add(person("ada"))
        session.flush()
        raise ZeroDivisionError
    assert names(database) == []


def test_what_was_read_in_a_change_still_holds_when_it_is_written(database: Database) -> None:
    """Twelve at once add one to what they read: no addition is lost."""
    with database.write() as session:
        session.add(Group(name="pi", selector="a=b", interval_s=0.0, compare_share=0.0, version=0))

    def add(_: int) -> None:
        with database.write() as session:
            row = session.get(Group, "pi")
            assert row is not None
            row.version = row.version + 1

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(add, range(12)))
    with database.read() as session:
        assert session.scalar(select(Group.version)) == 12


def test_a_reader_sees_one_moment(database: Database) -> None:
    with database.read() as session:
        before = session.scalar(select(func.count()).select_from(Person))
        with database.write() as other:
            other.add(person("ada"))
        assert session.scalar(select(func.count()).select_from(Person)) == before == 0
    assert names(database) == ["ada"]


def test_a_reader_waits_for_no_writer(database: Database) -> None:
    with database.write() as session:
        session.add(person("ada"))
        session.flush()
        assert names(database) == []


def test_shared_changes_run_beside_each_other_on_postgresql_and_wait_for_the_others(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    database.create()
    done: list[str] = []

    def change(name: str, shared: bool) -> None:
        with database.write(shared) as session:
            session.add(person(name))
        done.append(name)

    with database.write(shared=True) as session:
        session.add(person("ada"))
        session.flush()
        change("bob", True)  # or it would wait here for ever
        alone = threading.Thread(target=change, args=("eve", False))
        alone.start()
        alone.join(0.2)
        assert done == ["bob"]
    alone.join(10)
    assert done == ["bob", "eve"] and names(database) == ["ada", "bob", "eve"]
    database.close()


def test_a_row_that_is_there_is_a_conflict(database: Database) -> None:
    with database.write() as session:
        session.add(person("ada", "1"))
    with pytest.raises(ConflictError, match="another change came first"), database.write() as session:
        session.add(person("bob", "1"))
    assert names(database) == ["ada"]


def test_text_that_postgresql_cannot_hold_is_a_wrong_use(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    database.create()
    with pytest.raises(UsageError, match="cannot be stored"), database.write() as session:
        session.add(person("a\0b"))
    with pytest.raises(UsageError, match="cannot be stored"), database.write() as session:
        session.add(Event(at=0.0, actor="a", action="b", subject="c", detail={"reason": "\0"}))
    assert names(database) == []
    database.close()


def test_a_deadlock_is_tried_again_until_both_are_through(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    database.create()
    with database.write() as session:
        session.execute(text("ALTER DATABASE " + str(database.url.database) + " SET deadlock_timeout = '20ms'"))
        session.add_all([person("ada"), person("bob")])
    database.close()
    both = threading.Barrier(2)
    tries: list[str] = []

    @retried
    class Touch:
        def touch(self, first: str, second: str) -> None:
            tries.append(first)
            with database.write(shared=True) as session:
                session.execute(update(Person).where(Person.name == first).values(role=first))
                if len(tries) <= 2:
                    both.wait(10)
                session.execute(update(Person).where(Person.name == second).values(role=first))

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(Touch().touch, *pair) for pair in (("ada", "bob"), ("bob", "ada"))]
        for call in calls:
            call.result(20)
    assert len(tries) == 3  # one of them was undone, and came again
    with database.read() as session:
        assert len(set(session.scalars(select(Person.role)))) == 1
    database.close()


def test_what_crosses_for_ever_is_told(database: Database) -> None:
    calls = []

    @retried
    class Crossed:
        def change(self) -> None:
            calls.append(1)
            raise StoreError("another change crossed this one", again=True)

    with pytest.raises(StoreError, match="crossed"):
        Crossed().change()
    assert len(calls) == 5


def test_a_locked_sqlite_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    database = Database(f"sqlite:///{path}")
    database.create()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ("ROLLBACK",))
    release.start()
    with database.write() as session:
        session.add(person("ada"))
    assert names(database) == ["ada"]
    release.join()
    other.close()
    database.close()


def test_a_sqlite_file_that_stays_locked_fails_clearly_and_works_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet.db"
    Database(f"sqlite:///{path}").create()
    monkeypatch.setattr(module, "BUSY_MS", 100)
    database = Database(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked"), database.write() as session:
        session.add(person("ada"))
    assert names(database) == []  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    with database.write() as session:
        session.add(person("ada"))
    assert names(database) == ["ada"]
    database.close()


def test_a_change_that_holds_postgresql_too_long_fails_the_others_clearly(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(postgresql_url).create()
    slow, quick = Database(postgresql_url), Database(postgresql_url)
    with slow.write():
        quick.close()
        monkeypatch.setitem(module._POSTGRESQL, "options", "-c lock_timeout=100")
        quick = Database(postgresql_url)
        with pytest.raises(StoreError, match="is locked"), quick.write() as session:
            session.add(person("ada"))
    with quick.write() as session:
        session.add(person("ada"))
    assert names(slow) == ["ada"]
    for one in (slow, quick):
        one.close()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(StoreError, match="damaged") as caught:
        Database(f"sqlite:///{path}").create()
    assert "restore" in caught.value.hint
    assert path.read_bytes().startswith(b"not a database")
