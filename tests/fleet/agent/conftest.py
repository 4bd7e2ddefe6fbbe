"""Two bundles that share a file, as folders, and one that answers wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.fleet.bundles import make_bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """old and new differ in their scale alone; broken tells other golden answers than it gives."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "old": make_bundle(folder / "old", scale=2.0, padding=2000, as_directory=True),
        "new": make_bundle(folder / "new", scale=3.0, padding=2000, as_directory=True),
        "third": make_bundle(folder / "third", scale=4.0, padding=2000, as_directory=True),
        "wrong": make_bundle(folder / "wrong", name="wrong", scale=5.0, wrong=True, as_directory=True),
    }


@pytest.fixture(scope="session")
def digests(bundles: dict[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest() for name, path in bundles.items()}
