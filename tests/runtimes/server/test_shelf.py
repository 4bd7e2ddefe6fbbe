"""A folder of bundles: served together, the last one by default, and exchanged without restarting."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, MismatchError, NodeError
from edgekit.runtimes.server import Node
from edgekit.runtimes.server.shelf import on_shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    return folder


def digest(path: Path) -> str:
    with Bundle.open(path) as bundle:
        return bundle.digest


def by_default(node: Node) -> str:
    return node.catalog.find("net.tail").bundle.digest


def test_links_in_a_folder_are_followed_and_the_last_answers_by_default(
    shelf: Path, split_bundle: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    (shelf / "00").symlink_to(other_bundle)
    (shelf / "01").symlink_to(split_bundle)
    node = serve(shelf, tier="cloud")
    assert by_default(node) == digest(split_bundle)
    assert node.catalog.find("net.tail", bundle=digest(other_bundle)).bundle.digest == digest(other_bundle)


def test_what_comes_is_served_and_what_goes_is_let_go_in_the_order_of_names(
    shelf: Path, split_bundle: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    (shelf / "00").symlink_to(split_bundle)
    node = serve(shelf, tier="cloud")
    (shelf / "01").symlink_to(other_bundle)
    assert [outcome.error for outcome in node.reload()] == [None, None]
    assert by_default(node) == digest(other_bundle)
    (shelf / "00").unlink()
    (shelf / "02").symlink_to(split_bundle)  # back: the earlier one is the default again, and nothing is opened anew
    assert [outcome.version for outcome in node.reload()] == ["", ""]
    assert by_default(node) == digest(split_bundle)
    (shelf / "01").unlink()
    node.reload()
    with pytest.raises(MismatchError):
        node.catalog.find("net.tail", bundle=digest(other_bundle))


def test_a_bundle_that_cannot_be_served_changes_nothing(
    shelf: Path, split_bundle: Path, serve: Callable[..., Node]
) -> None:
    (shelf / "00").symlink_to(split_bundle)
    node = serve(shelf, tier="cloud")
    broken = shelf.parent / "broken.edgekit"
    shutil.copy(split_bundle, broken)
    broken.write_bytes(broken.read_bytes()[:-100])
    (shelf / "00").unlink()
    (shelf / "01").symlink_to(broken)
    (outcome,) = node.reload()
    assert isinstance(outcome.error, BundleError)
    assert by_default(node) == digest(split_bundle)
    (shelf / "02").symlink_to(split_bundle)
    (shelf / "01").unlink()
    node.reload()
    assert by_default(node) == digest(split_bundle)


def test_an_empty_folder_is_told_apart_from_a_bundle(shelf: Path, split_bundle: Path) -> None:
    assert on_shelf(split_bundle) is None
    assert on_shelf(shelf) == []
    with pytest.raises(NodeError, match="holds no bundles"):
        Node([shelf])
