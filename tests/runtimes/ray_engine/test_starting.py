"""What is told where Ray does not come up. Its own processes are never started here."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from edgekit.errors import NodeError
from edgekit.runtimes.ray_engine import RayNode, RayOptions
from edgekit.runtimes.server import NodeOptions

ray = pytest.importorskip("ray", exc_type=ImportError)


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because some raylet failed"),
        RuntimeError("no"),
        OSError("no"),
        KeyError("no"),
    ],
)
def test_whatever_ray_raises_at_its_start_is_told_with_a_hint_and_leaves_no_copies(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(**settings: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    node = RayNode([bundle], RayOptions(NodeOptions(tier="device"), temp_dir=tmp_path / "staged"))
    # What Ray is to know stands in the environment from then on.
    with patch.dict(os.environ), pytest.raises(NodeError, match="Ray did not start: ") as caught:
        node.start()
    assert "busy or short of memory" in caught.value.hint
    assert list((tmp_path / "staged").iterdir()) == []
