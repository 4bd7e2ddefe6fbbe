"""Every change that the agent makes on the disk: one call here is one step after which the power may go.

What counts after a cut: the bytes of a file once `sync` was called with it, a name once `sync` was called with its
folder. Anything else may be there, half there or not. A test replaces this class by one that cuts at each call.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from edgekit.errors import OutputError

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)


class Disk:
    """Raises OSError as the system does."""

    def make_folder(self, path: Path, mode: int = 0o750) -> None:
        path.mkdir()
        path.chmod(mode)

    def create(self, path: Path, data: bytes, mode: int = 0o640) -> None:
        """A file with this content, whatever lay there."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)

    def append(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        with os.fdopen(descriptor, "ab") as stream:
            stream.write(data)

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)

    def sync(self, path: Path) -> None:
        """A file's bytes, or the names in a folder, are on the disk after this."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """OSError with one of NO_LINKS where the file system has no hard links."""
        os.link(source, target)

    def symlink(self, target: Path, path: Path) -> None:
        """`path` leads to `target`, which may be relative to its folder."""
        path.symlink_to(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()

    def remove_tree(self, path: Path) -> None:
        """A folder and what is in it, one step each; nothing where there is none."""
        if not path.is_dir() or path.is_symlink():
            return
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.remove(entry)
        self.remove_folder(path)


def output_error(path: Path, error: OSError) -> OutputError:
    """What the user can do about it; nothing that runs is touched by it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left for {path}", hint="free some; what runs goes on running")
    if error.errno == errno.EROFS:
        return OutputError(f"{path} is on a read-only file system", hint="mount it writable; what runs goes on")
    return OutputError(f"cannot write {path}: {error.strerror}", hint="check the folder; what runs goes on running")
