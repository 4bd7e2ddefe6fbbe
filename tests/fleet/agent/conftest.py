"""Two bundles that share a file, as folders, and one that answers wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgekit.fleet.agent.home import Home
from tests.fleet.bundles import make_bundle

if TYPE_CHECKING:
    from tests.fleet.agent.live import LiveFleet, Wire


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
    from tests.fleet.agent.live import digest_of

    return {name: digest_of(path) for name, path in bundles.items()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def live(tmp_path: Path, bundles: dict[str, Path]) -> Iterator[LiveFleet]:
    """A real fleet that holds the bundles."""
    from tests.fleet.agent.live import LiveFleet

    fleet = LiveFleet(tmp_path / "data", list(bundles.values()))
    yield fleet
    fleet.close()


@pytest.fixture
def wire(live: LiveFleet) -> Iterator[Wire]:
    from tests.fleet.agent.live import Wire

    wire = Wire(live.port)
    yield wire
    wire.close()
