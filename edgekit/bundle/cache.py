"""Where parts of an archive lie as real files: `<cache>/parts/<digest>/<file>`, compared with it at each use."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.bundle.layout import chunks
from edgekit.bundle.manifest import PartFile
from edgekit.errors import BundleError, OutputError

logger = logging.getLogger("edgekit")


def cache_root() -> Path:
    """EDGEKIT_CACHE, else XDG_CACHE_HOME/edgekit, else ~/.cache/edgekit."""
    own = os.environ.get("EDGEKIT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~"), ".cache")) / "edgekit"  # noqa: PTH111 - never raises


def group_digest(files: tuple[PartFile, ...]) -> str:
    """The artifact's own digest; with companions, one over all of them, as they must lie together."""
    if len(files) == 1:
        return files[0].sha256
    lines = "".join(f"{file.sha256} {file.file}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def place(files: tuple[PartFile, ...], read: Callable[[str], Iterator[bytes]], origin: str, root: Path) -> Path:
    """The path of `files[0]`, with the others beside it; what lies there already is used where it is intact.

    Raises OSError where `root` cannot be written, BundleError where `read` gives other content than listed.
    """
    folder = root / "parts" / group_digest(files)
    if all(_intact(folder / file.file, file) for file in files):
        return folder / files[0].file
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for file in files:
            _copy(read(file.file), fresh / file.file, file, origin)
        _swap_in(fresh, folder, files)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder / files[0].file


def _copy(content: Iterator[bytes], target: Path, file: PartFile, origin: str) -> None:
    digest = hashlib.sha256()
    with target.open("xb") as stream:
        for chunk in content:
            digest.update(chunk)
            stream.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise BundleError(f"{file.file} of {origin} changed while it was read", hint="fetch the bundle again")


def _swap_in(fresh: Path, folder: Path, files: tuple[PartFile, ...]) -> None:
    """Renames `fresh` to `folder`; another process may have been faster, or have left it damaged."""
    for _ in range(3):
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            if all(_intact(folder / file.file, file) for file in files):
                return
            spoiled = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
            try:
                folder.rename(spoiled / folder.name)
            finally:
                shutil.rmtree(spoiled, ignore_errors=True)
        else:
            return
    raise OutputError(
        f"the cache folder {folder} keeps changing", hint="set EDGEKIT_CACHE to a folder that nobody else writes"
    )


def _intact(path: Path, file: PartFile) -> bool:
    """A plain file with the right size and digest."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size_bytes:
            return False
        digest = hashlib.sha256()
        for chunk in chunks(path):
            digest.update(chunk)
    except OSError as error:
        logger.info("cached %s cannot be read (%s) and is made again", path, error)
        return False
    return digest.hexdigest() == file.sha256
