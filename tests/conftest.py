"""What every test stands on: one thread, no network, a cache of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Triton reads it when it is imported: kernels are interpreted here, and compiled in processes of their own.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def parts_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Parts of bundles are unpacked here, not into the user's cache; downloads keep their place."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(folder))
        yield folder
