"""Which heads a server with another bundle answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Manifest
from edgekit.fleet.rollouts.skew import serves
from tests.fleet.bundles import make_bundle


def manifest(path: Path, **options: object) -> Manifest:
    with Bundle.open(make_bundle(path, as_directory=True, **options)) as bundle:  # type: ignore[arg-type]
        return bundle.manifest


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return manifest(tmp_path_factory.mktemp("skew") / "split", scale=2, edge=True)


def test_another_head_needs_another_tail(split: Manifest, tmp_path: Path) -> None:
    assert not serves(manifest(tmp_path / "other", scale=3, edge=True), split)


def test_what_stays_on_the_device_is_of_no_concern_to_servers(split: Manifest, tmp_path: Path) -> None:
    padded = manifest(tmp_path / "padded", scale=2, edge=True, padding=50)
    assert serves(padded, split) and serves(split, padded)
    local = manifest(tmp_path / "local", scale=9)
    assert serves(split, local), "a head that asks nobody is answered by anybody"
    assert not serves(local, split)


def test_nodes_name_models_by_their_bundle(split: Manifest, tmp_path: Path) -> None:
    assert not serves(manifest(tmp_path / "named", name="other", scale=2, edge=True), split)
