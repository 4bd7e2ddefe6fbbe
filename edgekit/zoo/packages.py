"""Where the packages of the `samples` extra keep their files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgekit.errors import MissingExtraError


def package_folder(package: str, purpose: str) -> Path:
    """The folder of an installed package, found without importing it. Raises MissingExtraError."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package, "samples", purpose)
    return Path(next(iter(spec.submodule_search_locations)))
