from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgekit.errors import OutputError, UnreachableError, UsageError
from edgekit.runtimes.coordinator.outbox import Outbox, Parcel


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


def test_what_was_put_is_sent_in_order_and_once(path: Path) -> None:
    sent: list[Parcel] = []
    with Outbox(path) as outbox:
        for number in range(5):
            assert outbox.put(f"id-{number}", bytes([number]))
        assert outbox.flush(sent.append) == 5
        assert outbox.flush(sent.append) == 0
        assert (len(outbox), outbox.sent, outbox.dropped) == (0, 5, 0)
    assert sent == [Parcel(f"id-{number}", bytes([number])) for number in range(5)]


def test_it_survives_the_process(path: Path) -> None:
    with Outbox(path) as outbox:
        outbox.put("a", b"1")
    with Outbox(path) as outbox:
        assert len(outbox) == 1
        sent: list[Parcel] = []
        outbox.flush(sent.append)
    assert sent == [Parcel("a", b"1")]


def test_a_failure_keeps_the_parcel_and_those_behind_it(path: Path) -> None:
    def fail_at_c(parcel: Parcel) -> None:
        if parcel.id == "c":
            raise UnreachableError("gone again")

    with Outbox(path) as outbox:
        for name in "abcd":
            outbox.put(name, b"")
        with pytest.raises(UnreachableError):
            outbox.flush(fail_at_c)
        assert len(outbox) == 2
        sent: list[Parcel] = []
        outbox.flush(sent.append)
    assert [parcel.id for parcel in sent] == ["c", "d"]


def test_an_id_that_waits_is_not_kept_twice(path: Path) -> None:
    with Outbox(path) as outbox:
        assert outbox.put("a", b"1")
        assert not outbox.put("a", b"2")
        assert len(outbox) == 1


def test_the_oldest_make_room_and_are_counted(path: Path) -> None:
    with Outbox(path, limit_bytes=100) as outbox:
        for number in range(10):
            outbox.put(str(number), bytes(30))
        assert (len(outbox), outbox.size_bytes, outbox.dropped) == (3, 90, 7)
        sent: list[Parcel] = []
        outbox.flush(sent.append)
    assert [parcel.id for parcel in sent] == ["7", "8", "9"]


def test_what_is_larger_than_all_of_it_is_dropped_alone(path: Path) -> None:
    with Outbox(path, limit_bytes=10) as outbox:
        outbox.put("small", b"123")
        assert not outbox.put("large", bytes(11))
        assert (len(outbox), outbox.dropped) == (1, 1)


def test_a_parcel_dropped_while_it_is_sent_takes_no_other_with_it(path: Path) -> None:
    with Outbox(path, limit_bytes=4) as outbox:
        outbox.put("old", b"1234")

        def crowd_out(parcel: Parcel) -> None:
            if parcel.id == "old":
                outbox.put("new", b"5678")

        assert outbox.flush(crowd_out, limit=1) == 1
        assert len(outbox) == 1


def test_a_limit_bounds_one_flush(path: Path) -> None:
    with Outbox(path) as outbox:
        for name in "abc":
            outbox.put(name, b"")
        assert outbox.flush(lambda parcel: None, limit=2) == 2
        assert len(outbox) == 1


def test_many_threads_lose_nothing(path: Path) -> None:
    sent: list[str] = []
    with Outbox(path) as outbox:

        def put(first: int) -> None:
            for number in range(first, first + 20):
                outbox.put(str(number), b"x")

        threads = [threading.Thread(target=put, args=(20 * index,)) for index in range(4)]
        threads += [threading.Thread(target=lambda: outbox.flush(lambda parcel: sent.append(parcel.id)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outbox.flush(lambda parcel: sent.append(parcel.id))
    assert sorted(sent, key=int) == [str(number) for number in range(80)]


def test_a_file_that_is_none_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="outbox"):
        Outbox(tmp_path)
    (tmp_path / "text").write_text("no database at all, but text that is long enough to look like something\n" * 20)
    with pytest.raises(OutputError, match="text"):
        Outbox(tmp_path / "text")


def test_no_room_at_all_is_a_usage_error(path: Path) -> None:
    with pytest.raises(UsageError):
        Outbox(path, limit_bytes=0)
