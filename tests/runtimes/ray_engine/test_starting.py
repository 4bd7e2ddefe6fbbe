"""What is told where Ray does not come up. Its own processes are never started here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from edgekit.errors import NodeError
from edgekit.runtimes.ray_engine import RayNode, RayOptions, starting
from edgekit.runtimes.ray_engine.starting import start_proxies, start_ray
from edgekit.runtimes.server import NodeOptions

ray = pytest.importorskip("ray", exc_type=ImportError)
pytest.importorskip("ray.serve", exc_type=ImportError)


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
    monkeypatch.setattr(starting, "START_S", 0.0)
    node = RayNode([bundle], RayOptions(NodeOptions(tier="device"), temp_dir=tmp_path / "staged"))
    # What Ray is to know stands in the environment from then on.
    with patch.dict(os.environ), pytest.raises(NodeError, match="Ray did not start: ") as caught:
        node.start()
    assert "busy or short of memory" in caught.value.hint
    assert list((tmp_path / "staged").iterdir()) == []


def test_a_cluster_that_takes_too_long_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def start(**settings: object) -> None:
        begun.append("init")
        if len(begun) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: begun.append("shutdown"))
    start_ray(RayOptions())
    assert begun == ["init", "shutdown", "init"]


@pytest.mark.parametrize(("said", "is_tried_again"), [("node timed out", True), ("address in use", False)])
def test_a_cluster_that_never_comes_up_is_given_up(
    monkeypatch: pytest.MonkeyPatch, said: str, is_tried_again: bool
) -> None:
    begun: list[str] = []

    def start(**settings: object) -> None:
        begun.append(said)
        time.sleep(0.1)
        raise RuntimeError(said)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(starting, "START_S", 0.25)
    with pytest.raises(RuntimeError, match=said):
        start_ray(RayOptions())
    assert (len(begun) > 1) is is_tried_again


class Slow:
    """Stands for Ray Serve whose proxies come up at the third look, after `serve.start` has given up."""

    def __init__(self, come_up: bool) -> None:
        self.come_up, self.starts, self.looks = come_up, 0, 0

    def start(self, **settings: object) -> None:
        self.starts += 1
        raise TimeoutError("HTTP proxies not available after 60s.")

    def status(self) -> SimpleNamespace:
        self.looks += 1
        is_up = self.come_up and self.looks >= 3
        return SimpleNamespace(proxies={"node": "HEALTHY" if is_up else "STARTING"} if self.looks > 1 else {})


def test_proxies_that_take_longer_than_ray_waits_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(come_up=True)
    monkeypatch.setattr(ray.serve, "start", slow.start)
    monkeypatch.setattr(ray.serve, "status", slow.status)
    start_proxies(RayOptions(), {})
    assert (slow.starts, slow.looks) == (1, 3)


def test_proxies_that_never_come_up_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(come_up=False)
    monkeypatch.setattr(ray.serve, "start", slow.start)
    monkeypatch.setattr(ray.serve, "status", slow.status)
    monkeypatch.setattr(starting, "START_S", 0.5)
    with pytest.raises(TimeoutError, match=r"not available after 0\.5 s \(STARTING\)"):
        start_proxies(RayOptions(), {})
