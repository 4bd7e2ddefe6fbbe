"""A Bundle, open: verified first, then its manifest, its report and its files."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgekit.bundle.cache import cache_root, place
from edgekit.bundle.contents import Contents, DirectoryContents, open_contents, verify_contents
from edgekit.bundle.layout import MANIFEST, REPORT, REPORT_HTML, Index, part_files
from edgekit.bundle.manifest import Manifest, PartFile
from edgekit.bundle.signature import Signature
from edgekit.errors import BundleError, UnknownNameError

logger = logging.getLogger("edgekit")

_REPORT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class VerifyResult:
    """`digest`: of the manifest. `signed_by`: the public key in the bundle, which counts only where `key_checked`."""

    path: Path
    name: str
    digest: str
    files: int
    size_bytes: int
    signed_by: str | None
    key_checked: bool


class Bundle:
    """Made by `Bundle.open`. `path` is where it came from; `digest` is the sha256 of its manifest.

    Close it (or use `with`, or drop it) to let go of the archive's file. Paths that it gave out stay valid, unless the
    part cache could not be written: then they end with the bundle.
    """

    def __init__(self, contents: Contents, index: Index, manifest: Manifest, signature: Signature | None) -> None:
        self._contents, self._index = contents, index
        self._signature = signature
        self._scratch: Path | None = None
        self._releases = [weakref.finalize(self, contents.close)]
        self.path, self.manifest = contents.path, manifest
        self.digest = index.files[MANIFEST].sha256

    @classmethod
    def open(cls, path: str | Path, key: Path | None = None) -> Bundle:
        """Raises BundleError for anything that is not a whole, unaltered bundle, SignatureError where `key` did not
        sign it, MissingExtraError where `key` is given and cryptography is missing."""
        contents = open_contents(Path(path))
        try:
            index, manifest, signature = verify_contents(contents, key)
        except OSError as error:
            contents.close()
            raise BundleError(f"cannot read {path}: {error.strerror}", hint="check the disk, fetch it again") from error
        except BaseException:
            contents.close()
            raise
        return cls(contents, index, manifest, signature)

    @property
    def is_signed(self) -> bool:
        return self._signature is not None

    @property
    def signed_by(self) -> str | None:
        """The public key, hexadecimal, that the bundle claims; `open(key=...)` is what proves it."""
        return self._signature.public_key if self._signature else None

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._index.files.values())

    @property
    def files(self) -> dict[str, int]:
        """Every sealed file with its size in bytes."""
        return {name: entry.size_bytes for name, entry in sorted(self._index.files.items())}

    @cached_property
    def report(self) -> dict[str, Any]:
        """report.json as it stands; edgekit.report reads it as an EvaluationReport."""
        try:
            return _REPORT.validate_json(self._contents.read(REPORT))
        except ValidationError as error:
            raise BundleError(f"report.json of {self.path} is not an object", hint="export the bundle again") from error

    @property
    def report_html(self) -> str:
        return self._contents.read(REPORT_HTML).decode("utf-8", errors="replace")

    def part_path(self, name: str | None = None) -> Path:
        """The artifact of a part as a real file, its companions beside it; None takes the default part.

        A directory's own file; for an archive a copy in the cache, compared with the manifest at each call.
        Raises UnknownNameError.
        """
        known = {part.name: part for part in self.manifest.parts}
        wanted = name if name is not None else self.manifest.part().name
        if wanted not in known:
            raise UnknownNameError("part", wanted, known)
        return self._place("parts", part_files(known[wanted]))

    def asset_path(self, name: str) -> Path:
        """Raises UnknownNameError."""
        known = {file.file: file for file in self.manifest.assets}
        if name not in known:
            raise UnknownNameError("asset", name, known)
        return self._place("assets", (known[name],))

    def _place(self, folder: str, files: tuple[PartFile, ...]) -> Path:
        def read(file: str) -> Iterator[bytes]:
            return self._contents.chunks(f"{folder}/{file}")

        origin = str(self.path)
        if isinstance(self._contents, DirectoryContents):
            for file in files:
                self._contents.check_file(f"{folder}/{file.file}", self._index.files[f"{folder}/{file.file}"])
            return self.path / folder / files[0].file
        if self._scratch is None:
            try:
                return place(files, read, origin, cache_root())
            except OSError as error:
                self._scratch = Path(tempfile.mkdtemp(prefix="edgekit-"))
                self._releases.append(weakref.finalize(self, partial(shutil.rmtree, self._scratch, ignore_errors=True)))
                logger.warning(
                    "the cache %s cannot be written (%s): parts go to a temporary folder, copied anew each "
                    "time; set EDGEKIT_CACHE to a writable one",
                    cache_root(),
                    error.strerror,
                )
        return place(files, read, origin, self._scratch)

    def close(self) -> None:
        for release in self._releases:
            release()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def verify(path: str | Path, key: Path | None = None) -> VerifyResult:
    """Opens the bundle, which checks all of it, and closes it again. Raises like `Bundle.open`."""
    with Bundle.open(path, key) as bundle:
        bundle.report  # noqa: B018 - the report must be readable too
        return VerifyResult(
            path=bundle.path,
            name=bundle.manifest.name,
            digest=bundle.digest,
            files=len(bundle.files),
            size_bytes=bundle.size_bytes,
            signed_by=bundle.signed_by,
            key_checked=key is not None,
        )
