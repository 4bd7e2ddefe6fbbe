"""What lies where in a bundle, and the index that seals it. The same rules hold for a directory and for an archive.

index.json        size and sha256 of every file below; what a signature is made over
manifest.json     what the bundle is: deterministic
report.json       what was measured
report.html       the same for people
parts/<file>      artifacts and what must lie beside them
assets/<file>     data that pre- and postprocessing need
signature.json    optional, ed25519
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from edgekit.bundle.manifest import SCHEMA_VERSION, Digest, Manifest, Part, PartFile
from edgekit.bundle.strict import Strict
from edgekit.errors import BundleError

INDEX = "index.json"
MANIFEST = "manifest.json"
REPORT = "report.json"
REPORT_HTML = "report.html"
SIGNATURE = "signature.json"

MAX_FILES = 4096
# What is read whole into memory has a bound; parts and assets are streamed and bounded by the real file's size.
MAX_BYTES = {INDEX: 1 << 20, SIGNATURE: 4 << 10, MANIFEST: 32 << 20, REPORT: 32 << 20, REPORT_HTML: 128 << 20}
CHUNK_BYTES = 1 << 20

ModelT = TypeVar("ModelT", bound=BaseModel)

_PATH = re.compile(r"(?:parts|assets)/[A-Za-z0-9][A-Za-z0-9._-]{0,127}|manifest\.json|report\.json|report\.html")


class Entry(Strict):
    size_bytes: int = Field(ge=0, lt=1 << 62)
    sha256: Digest


class Index(Strict):
    schema_version: Literal[1] = 1
    files: dict[Annotated[str, Field(max_length=200)], Entry] = Field(max_length=MAX_FILES)

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Sorted keys, two spaces, UTF-8, one newline at the end. ValueError for NaN and infinity."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def check_path(path: str, origin: str) -> None:
    """Raises BundleError for a path that no bundle holds: `..`, absolute, backslash, drive, unknown folder."""
    if _PATH.fullmatch(path) is None:
        raise BundleError(
            f"{origin} holds the path {path[:200]!r}, allowed parts/<file>, assets/<file> and the known files",
            hint="do not use this bundle: it was not written by edgekit; fetch it again from where it was made",
        )


def check_no_case_twins(paths: Iterable[str], origin: str) -> None:
    """Two names that differ in case only would be one file on some file systems."""
    seen: dict[str, str] = {}
    for path in paths:
        twin = seen.setdefault(path.casefold(), path)
        if twin != path:
            raise BundleError(
                f"{origin} holds {twin!r} and {path!r}, which are one file where case does not count",
                hint="do not use this bundle; fetch it again from where it was made",
            )


def parse_index(data: bytes, origin: str) -> Index:
    """Raises BundleError for anything but the exact bytes that edgekit writes."""
    index = parse(Index, data, INDEX, origin)
    for path in index.files:
        check_path(path, origin)
    check_no_case_twins(index.files, origin)
    missing = {MANIFEST, REPORT, REPORT_HTML} - index.files.keys()
    if missing:
        raise BundleError(
            f"the index of {origin} lacks {', '.join(sorted(missing))}",
            hint="export the bundle again, or fetch it again",
        )
    if index.to_bytes() != data:
        raise BundleError(f"the index of {origin} was edited", hint="fetch the bundle again from where it was made")
    return index


class _Versioned(BaseModel):
    schema_version: int


def parse(kind: type[ModelT], data: bytes, name: str, origin: str) -> ModelT:
    """`data` as a `kind`. Raises BundleError; a newer schema is told apart from nonsense."""
    try:
        version = _Versioned.model_validate_json(data).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{name} of {origin} has schema version {version}, this edgekit reads up to {SCHEMA_VERSION}",
                hint="pip install --upgrade edgekit",
            )
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        raise BundleError(
            f"{name} of {origin} does not fit: {where}: {first['msg']}"
            if where
            else f"{name} of {origin}: {first['msg']}",
            hint="fetch the bundle again from where it was made, or export it again",
        ) from error


def check_manifest(manifest: Manifest, index: Index, origin: str) -> None:
    """Raises BundleError where the manifest and the index do not speak of the same files."""
    wanted = dict(named_files(manifest))
    listed = {path: entry for path, entry in index.files.items() if "/" in path}
    if wanted.keys() != listed.keys():
        differing = sorted(wanted.keys() ^ listed.keys())
        raise BundleError(
            f"manifest and index of {origin} disagree about {', '.join(differing[:5])}",
            hint="fetch the bundle again from where it was made",
        )
    for path, file in wanted.items():
        if (file.size_bytes, file.sha256) != (listed[path].size_bytes, listed[path].sha256):
            raise BundleError(
                f"manifest and index of {origin} disagree about the content of {path}",
                hint="fetch the bundle again from where it was made",
            )


def named_files(manifest: Manifest) -> Iterator[tuple[str, PartFile]]:
    """Every file that the manifest names, with its path in the bundle."""
    for part in manifest.parts:
        for file in part_files(part):
            yield f"parts/{file.file}", file
    for file in manifest.assets:
        yield f"assets/{file.file}", file


def part_files(part: Part) -> tuple[PartFile, ...]:
    """The artifact, then what lies beside it."""
    return (part, *part.companions)


def describe_file(name: str, source: Path | bytes) -> PartFile:
    """The manifest's line for a file that will be called `name` in the bundle."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(source):
        digest.update(chunk)
        size += len(chunk)
    return PartFile(file=name, size_bytes=size, sha256=digest.hexdigest())


def chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
