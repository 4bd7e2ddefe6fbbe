from __future__ import annotations

from pathlib import Path

import pytest

from samples.benchmarks.rolling_scene import write_version


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """float32 [batch, 512] -> exact, for the device: any tier's node serves it whole."""
    return write_version(tmp_path / "exact.edgekit", 1)
