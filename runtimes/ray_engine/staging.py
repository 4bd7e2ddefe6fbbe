"""What is deployed, apart from what lies at the user's paths: a replica may start again long after those changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Tier
from edgekit.errors import EdgekitError, NodeError, OutputError
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.server.catalog import parts_for


@dataclass(frozen=True)
class Deployed:
    """A bundle as it is handed over: where replicas open it, the digest that each compares, its served models."""

    path: Path
    digest: str
    models: tuple[str, ...]


class Staging:
    """Copies by digest in a folder of its own; without `copies` the user's paths are handed over as they are, for a
    cluster whose machines share them."""

    def __init__(self, tier: Tier, key: Path | None, *, copies: bool, parent: Path | None = None) -> None:
        self._tier, self._key = tier, key
        self._folder: Path | None = None
        if copies:
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="edgekit-", dir=parent))

    def stage(self, paths: Sequence[Path]) -> tuple[Deployed, ...]:
        """Raises BundleError, NodeError where one holds nothing for the tier or comes twice, OutputError."""
        found: list[Deployed] = []
        for path in paths:
            entry = self._stage(path)
            if any(other.digest == entry.digest for other in found):
                raise NodeError(f"{path} is given twice", hint="name each bundle once")
            found.append(entry)
        return tuple(found)

    def keep(self, deployed: Iterable[Deployed]) -> None:
        """Removes every other copy."""
        kept = {entry.path for entry in deployed}
        for copy in self._folder.iterdir() if self._folder is not None else ():
            if copy not in kept:
                _remove(copy)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stage(self, path: Path) -> Deployed:
        if self._folder is None:
            return self._described(path)
        try:
            fresh = Path(tempfile.mkdtemp(dir=self._folder)) / path.name
            if path.is_dir():
                shutil.copytree(path, fresh)
            elif path.exists():
                shutil.copyfile(path, fresh)
        except OSError as error:
            raise OutputError(f"cannot copy {path}: {error.strerror or error}", hint="free some space") from error
        try:
            # The copy is what is verified, and nobody writes to it any more; the user knows of none.
            with _told_as(path, fresh):
                described = self._described(fresh if fresh.exists() else path)
            copy = self._folder / described.digest
            if not copy.exists():
                fresh.rename(copy)
            return Deployed(copy, described.digest, described.models)
        finally:
            _remove(fresh.parent)

    def _described(self, path: Path) -> Deployed:
        with Bundle.open(path, self._key) as bundle:
            manifest = bundle.manifest
            parts = parts_for(manifest, self._tier)
            names = tuple(model_name(manifest.name, part.name) for part in parts)
            return Deployed(path, bundle.digest, names)


@contextmanager
def _told_as(path: Path, copy: Path) -> Iterator[None]:
    """Errors about `copy` name `path`."""
    try:
        yield
    except EdgekitError as error:
        error.message, error.hint = (text.replace(str(copy), str(path)) for text in (error.message, error.hint))
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
