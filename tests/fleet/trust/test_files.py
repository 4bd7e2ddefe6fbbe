from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.errors import StoreError
from edgekit.fleet.trust.files import read_private, write_private


def test_a_secret_and_its_name_are_on_the_disk_before_anything_counts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key whose name a power cut takes away again would have signed what is stored, and a key that was moved to a
    stick would be nowhere."""
    path, synced, real = tmp_path / "key", [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_private(path, b"secret")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert read_private(path) == b"secret" and list(tmp_path.iterdir()) == [path]


def test_a_secret_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(StoreError, match="may be read by others"):
        read_private(tmp_path / "key")
