"""Copies of what is deployed, which outlive what happens at the user's paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle, write_bundle
from edgekit.errors import BundleError, NodeError
from edgekit.runtimes.ray_engine.staging import Staging
from samples.benchmarks.rolling_scene import write_version


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging("device", None, copies=True, parent=tmp_path / "staged")


def test_a_copy_stays_what_it_was_when_the_path_changes(staging: Staging, bundle: Path) -> None:
    (first,) = staging.stage([bundle])
    assert first.models == ("exact.whole",) and first.path != bundle
    write_version(bundle, 2)
    (second,) = staging.stage([bundle])
    assert first.digest != second.digest
    for entry in (first, second):
        with Bundle.open(entry.path) as opened:
            assert opened.digest == entry.digest


def test_the_same_bundle_is_staged_once(staging: Staging, bundle: Path, tmp_path: Path) -> None:
    assert staging.stage([bundle]) == staging.stage([bundle])
    assert len(list((tmp_path / "staged").glob("edgekit-*/*"))) == 1


def test_what_is_not_kept_is_removed_and_all_of_it_in_the_end(staging: Staging, bundle: Path, tmp_path: Path) -> None:
    first = staging.stage([bundle])
    second = staging.stage([write_version(bundle, 2)])
    staging.keep(second)
    assert not first[0].path.exists() and second[0].path.exists()
    staging.close()
    assert list((tmp_path / "staged").iterdir()) == []


def test_a_folder_is_staged_as_a_folder(staging: Staging, bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(bundle) as opened:
        files = {"parts/exact.onnx": opened.part_path("whole")}
        folder = write_bundle(
            tmp_path / "folder", opened.manifest, files, {"schema_version": 1}, "<!doctype html>", as_directory=True
        )
    (entry,) = staging.stage([folder])
    with Bundle.open(entry.path) as opened:
        assert entry.path.is_dir() and opened.digest == entry.digest


def test_without_copies_the_users_paths_are_handed_over(bundle: Path) -> None:
    (entry,) = Staging("device", None, copies=False).stage([bundle])
    assert entry.path == bundle


def test_what_cannot_be_deployed_is_refused_and_leaves_nothing(staging: Staging, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        staging.stage([tmp_path / "missing.edgekit"])
    bundle_copy = tmp_path / "torn.edgekit"
    bundle_copy.write_bytes(bundle.read_bytes()[:-100])
    with pytest.raises(BundleError) as caught:
        staging.stage([bundle_copy])
    assert str(bundle_copy) in str(caught.value) and "staged" not in str(caught.value)
    with pytest.raises(NodeError, match="given twice"):
        staging.stage([bundle, bundle])
    staging.keep(())
    assert list((tmp_path / "staged").glob("edgekit-*/*")) == []
