"""Writes a bundle in one step: it is there whole, or not at all, and a good one in its place survives any failure."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bundle.archive import write_archive
from edgekit.bundle.layout import (
    INDEX,
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    REPORT,
    REPORT_HTML,
    SIGNATURE,
    Entry,
    Index,
    canonical_json,
    check_manifest,
    check_no_case_twins,
    check_path,
    chunks,
    describe_file,
)
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.screening import refuse_pickle
from edgekit.bundle.signature import sign
from edgekit.errors import BundleError, OutputError

Files = Mapping[str, Path | bytes]


def write_bundle(
    path: Path,
    manifest: Manifest,
    files: Files,
    report: Mapping[str, Any],
    report_html: str,
    *,
    sign_key: Path | None = None,
    force: bool = False,
    as_directory: bool = False,
) -> Path:
    """`files`: "parts/<file>" and "assets/<file>" -> a path or the bytes; exactly those that the manifest names.

    Same arguments, same bytes. Returns `path`. Raises OutputError where `path` exists and `force` is not given, or
    cannot be written; BundleError where manifest and files disagree.
    """
    check_output(path, force=force)
    contents = _assemble(manifest, files, report, report_html, sign_key, str(path))
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a rename is atomic only within one file system.
        if as_directory:
            fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            _fill_directory(fresh, contents)
        else:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            fresh = Path(name)
            _fill_archive(descriptor, contents)
        fresh.chmod(0o777 & ~_umask() if as_directory else 0o666 & ~_umask())
        check_output(path, force=force)
        _move_in(fresh, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if fresh is not None:
            _remove(fresh)
    return path


def check_output(path: Path, *, force: bool) -> None:
    """Raises OutputError where `path` is taken; call it before long work. `force` replaces files and bundles only."""
    if not path.name or path.name in (".", ".."):
        raise OutputError(f"{str(path)!r} names no file", hint="give a path such as model.edgekit")
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputError(f"{path} exists", hint="--force replaces it, or choose another name")
    if path.is_dir() and any(path.iterdir()) and not (path / INDEX).is_file():
        raise OutputError(f"{path} is a folder that holds no bundle", hint="it is never replaced: choose another name")


def check_folder(path: Path) -> None:
    """Raises OutputError where the folder of `path` is missing or cannot be written; call it before long work."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"there is no folder {folder}", hint=f"mkdir -p {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder} is not writable: {error.strerror}", hint="choose another place") from error


def _assemble(
    manifest: Manifest, files: Files, report: Mapping[str, Any], report_html: str, sign_key: Path | None, origin: str
) -> dict[str, Path | bytes]:
    contents: dict[str, Path | bytes] = {
        **files,
        MANIFEST: manifest.to_bytes(),
        REPORT: canonical_json(report),
        REPORT_HTML: report_html.encode("utf-8"),
    }
    if len(contents) + 2 > MAX_FILES:
        raise BundleError(f"{len(contents)} files, allowed {MAX_FILES - 2}", hint="pack companions into fewer files")
    check_no_case_twins(contents, origin)
    entries = {}
    for name, source in contents.items():
        check_path(name, origin)
        if isinstance(source, Path) and not source.is_file():
            raise BundleError(f"{name} should come from {source}, which is no file", hint="export again")
        described = describe_file("file", source)
        if described.size_bytes > MAX_BYTES.get(name, described.size_bytes):
            raise BundleError(
                f"{name} has {described.size_bytes} bytes, allowed {MAX_BYTES[name]}", hint="keep fewer samples in it"
            )
        if "/" in name:
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                refuse_pickle(name, content)
        entries[name] = Entry(size_bytes=described.size_bytes, sha256=described.sha256)
    index = Index(files=entries)
    check_manifest(manifest, index, origin)
    sealed = index.to_bytes()
    contents[INDEX] = sealed
    if sign_key is not None:
        contents[SIGNATURE] = sign(sealed, sign_key).to_bytes()
    return contents


def _fill_archive(descriptor: int, contents: Files) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        write_archive(stream, contents)
        stream.flush()
        os.fsync(stream.fileno())


def _fill_directory(folder: Path, contents: Files) -> None:
    for name in sorted(contents):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        with target.open("xb") as stream:
            for chunk in chunks(contents[name]):
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    for inner in (folder / "parts", folder / "assets", folder):
        if inner.is_dir():
            sync_folder(inner)


def _move_in(fresh: Path, path: Path) -> None:
    """A rename where the system can replace in one step; else the old one steps aside and comes back on failure."""
    if not path.is_dir() and not fresh.is_dir():
        fresh.replace(path)
        return
    if not os.path.lexists(path):
        fresh.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    old = aside / path.name
    try:
        path.rename(old)
        try:
            fresh.rename(path)
        except BaseException:
            old.rename(path)
            raise
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, on systems where a folder can be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left while writing {path}", hint="free some space; nothing was left behind")
    return OutputError(f"cannot write {path}: {error.strerror or error}", hint="choose a writable path")
