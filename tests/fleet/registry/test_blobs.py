from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from edgekit.errors import ConflictError, StoreError, UsageError
from edgekit.fleet.registry import blobs as blobs_module
from edgekit.fleet.registry.blobs import Blobs, FolderBlobs
from edgekit.fleet.registry.s3 import S3Blobs, open_blobs

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


def put(blobs: Blobs, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    assert blobs.append(sha256, 0, len(data), [data]) == len(data)
    return sha256


def test_what_comes_in_pieces_is_whole_when_the_last_has_come(blobs: Blobs) -> None:
    assert blobs.append(SHA256, 0, len(DATA), [DATA[:100], DATA[100:3000]]) == 3000
    assert blobs.size(SHA256) is None and blobs.received(SHA256) == 3000 and list(blobs) == []
    with pytest.raises(KeyError):
        blobs.path(SHA256)
    assert blobs.append(SHA256, 3000, len(DATA), [DATA[3000:]]) == len(DATA)
    assert blobs.size(SHA256) == len(DATA) and list(blobs) == [SHA256]
    assert blobs.path(SHA256).read_bytes() == DATA
    assert b"".join(blobs.read(SHA256)) == DATA
    assert b"".join(blobs.read(SHA256, 5, 4000)) == DATA[5:4000]
    assert b"".join(blobs.read(SHA256, len(DATA) - 3)) == DATA[-3:]


def test_a_whole_one_is_not_taken_again(blobs: Blobs) -> None:
    put(blobs, DATA)

    def never() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    assert blobs.append(SHA256, 0, len(DATA), never()) == len(DATA)


def test_an_empty_file_is_one_too(blobs: Blobs) -> None:
    sha256 = put(blobs, b"")
    assert blobs.size(sha256) == 0 and b"".join(blobs.read(sha256)) == b""


@pytest.mark.parametrize(
    ("data", "size", "what"),
    [(DATA + b"more", len(DATA), "more than"), (b"x" * len(DATA), len(DATA), "has the digest")],
)
def test_too_much_and_something_else_are_refused_and_nothing_is_kept(
    blobs: Blobs, data: bytes, size: int, what: str
) -> None:
    with pytest.raises(UsageError, match=what):
        blobs.append(SHA256, 0, size, [data])
    assert blobs.size(SHA256) is None and blobs.received(SHA256) == 0
    put(blobs, DATA)


def test_going_on_from_the_wrong_byte_is_refused_and_loses_nothing(blobs: Blobs) -> None:
    blobs.append(SHA256, 0, len(DATA), [DATA[:10]])
    with pytest.raises(ConflictError, match="10 bytes"):
        blobs.append(SHA256, 5, len(DATA), [DATA[5:]])
    assert blobs.received(SHA256) == 10


def test_what_broke_off_in_the_middle_goes_on_after_a_restart(tmp_path: Path) -> None:
    def breaking() -> Iterator[bytes]:
        yield DATA[:700]
        raise ConnectionResetError

    with pytest.raises(StoreError):
        FolderBlobs(tmp_path).append(SHA256, 0, len(DATA), breaking())
    again = FolderBlobs(tmp_path)
    at = again.received(SHA256)
    assert at == 700
    assert again.append(SHA256, at, len(DATA), [DATA[at:]]) == len(DATA)


def test_two_who_send_the_same_at_once_do_not_mix(tmp_path: Path) -> None:
    blobs, inside, go_on = FolderBlobs(tmp_path), threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield DATA[:50]
        inside.set()
        assert go_on.wait(10)
        yield DATA[50:]

    sender = threading.Thread(target=blobs.append, args=(SHA256, 0, len(DATA), slow()))
    sender.start()
    assert inside.wait(10)
    with pytest.raises(ConflictError, match="somebody else"):
        blobs.append(SHA256, 0, len(DATA), [DATA])
    go_on.set()
    sender.join(10)
    assert blobs.path(SHA256).read_bytes() == DATA


def test_a_full_disk_is_told_and_what_came_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.append(SHA256, 0, len(DATA), [DATA[:10]])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space left"):
        blobs.append(SHA256, 10, len(DATA), [DATA[10:20]])
    monkeypatch.undo()
    at = blobs.received(SHA256)
    assert at >= 10
    assert blobs.append(SHA256, at, len(DATA), [DATA[at:]]) == len(DATA)


def test_removing_what_is_not_there_is_no_error(blobs: Blobs) -> None:
    put(blobs, DATA)
    blobs.remove(SHA256)
    blobs.remove(SHA256)
    assert blobs.size(SHA256) is None and list(blobs) == []


def test_when_each_changed_is_told_of_whole_ones_and_of_those_on_their_way(blobs: Blobs) -> None:
    whole = put(blobs, b"whole")
    blobs.append(SHA256, 0, len(DATA), [DATA[:1]])
    assert {sha256 for sha256, _ in blobs.changed()} == {whole, SHA256}
    assert all(when > 1.7e9 for _, when in blobs.changed())


def test_an_object_is_fetched_as_a_file_once_and_checked(s3_url: str, tmp_path: Path) -> None:
    put(S3Blobs(s3_url, tmp_path / "one"), DATA)
    other = S3Blobs(s3_url, tmp_path / "two")
    assert other.local(SHA256) is None
    assert other.path(SHA256).read_bytes() == DATA
    assert other.local(SHA256) == other.path(SHA256)


def test_copies_beyond_the_cache_go_the_objects_stay(s3_url: str, tmp_path: Path) -> None:
    blobs = S3Blobs(s3_url, tmp_path / "one", cache_bytes=10)
    put(blobs, DATA)
    assert blobs.local(SHA256) is None and blobs.size(SHA256) == len(DATA)


@pytest.mark.parametrize("url", ["http://bucket", "s3:///prefix", "s3://bucket?colour=red"])
def test_an_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="object store"):
        open_blobs(url, tmp_path)


def test_a_bucket_that_is_not_there_is_told(s3_url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        open_blobs(s3_url.replace("s3://bundles", "s3://nothing"), tmp_path)


@pytest.mark.parametrize("left", [1, 0])
def test_who_opened_it_before_another_one_went_on_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Between the opening of the file and the lock the other sender ends, with `left` bytes to come."""
    blobs, real, came = FolderBlobs(tmp_path), blobs_module._claim, len(DATA) - left
    blobs.append(SHA256, 0, len(DATA), [DATA[:500]])

    def late(stream: BinaryIO, sha256: str) -> None:
        monkeypatch.setattr(blobs_module, "_claim", real)
        FolderBlobs(tmp_path).append(SHA256, 500, len(DATA), [DATA[500:came]])
        real(stream, sha256)

    monkeypatch.setattr(blobs_module, "_claim", late)
    with pytest.raises(ConflictError):
        blobs.append(SHA256, 500, len(DATA), [DATA[500:900]])
    if left:
        assert blobs.received(SHA256) == came
        assert blobs.append(SHA256, came, len(DATA), [DATA[came:]]) == len(DATA)
    assert blobs.path(SHA256).read_bytes() == DATA


def test_every_folder_in_which_a_name_is_new_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(blobs_module, "sync_folder", synced.append)
    put(FolderBlobs(tmp_path), DATA)
    whole = tmp_path / "whole"
    assert {whole / SHA256[:2], whole, tmp_path / "part"} <= set(synced)
