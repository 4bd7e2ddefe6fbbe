"""The bundle of the capacity tests, served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.capacity.conftest import make_whole


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("tuning") / "small.edgekit")
