"""A real Ray cluster in namespaces of its own: what `inside.py` and `inside_command.py` tell is judged here."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from samples.benchmarks.namespace import run_isolated, why_not

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[3]
PLAN = {"replicas": 2, "callers": 6, "pause_s": 0.05, "delay_ms": 150.0, "steady_s": 2.0, "kills": 2, "limit_s": 400}


def inside(script: str, *words: str) -> dict[str, Any]:
    """What the script tells; the last of its words is a folder."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    # Ray's sockets lie below it, and their paths may have 107 bytes: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        command = [sys.executable, "-m", f"tests.runtimes.ray_engine.{script}", *words, str(folder)]
        code, out, err = run_isolated(command, 540, cwd=REPOSITORY)
    finally:
        shutil.rmtree(folder)
    assert code == 0, err[-4000:]
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return inside("inside", json.dumps(PLAN))


def test_a_strangers_client_is_answered_as_by_any_node(told: dict[str, Any]) -> None:
    assert told["stranger"] == {
        "live": True,
        "ready": True,
        "model": "exact.whole",
        "id": "7",
        "right": True,
        "unknown": 404,
        "malformed": 400,
        "metrics": 404,
    }


def test_the_same_bundle_is_no_update(told: dict[str, Any]) -> None:
    assert told["same"] is False


def test_a_bundle_that_does_not_load_is_refused_while_the_former_one_serves(told: dict[str, Any]) -> None:
    assert "do not come up" in told["broken"]["refused"]
    assert told["broken"]["keeps"] and told["broken"]["replicas"]["RUNNING"] == PLAN["replicas"]
    phase = told["phases"]["broken"]
    assert phase["answered"] > 0 and (phase["lost"], phase["wrong"]) == (0, 0), phase["failures"]
    assert set(phase["versions"]) == {"1"}


def test_a_rolling_update_loses_no_request(told: dict[str, Any]) -> None:
    phase = told["phases"]["rolling update"]
    assert told["updated"] is True
    assert (phase["lost"], phase["wrong"]) == (0, 0), phase["failures"]
    assert set(phase["versions"]) == {"1", "2"}


def test_a_killed_replica_loses_no_request_and_is_replaced(told: dict[str, Any]) -> None:
    phase = told["phases"]["killed"]
    assert (phase["lost"], phase["wrong"], phase["late"]) == (0, 0, 0), phase["failures"]
    assert phase["answered"] > 0 and set(phase["versions"]) == {"2"}


def test_nothing_is_left_when_it_has_stopped(told: dict[str, Any]) -> None:
    assert told["left_running"] == []
    assert told["staged"] >= 1 and told["left_staged"] == []


def test_the_command_serves_scales_with_load_rolls_over_and_ends_well() -> None:
    told = inside("inside_command")
    assert told["told"]["engine"] == "ray" and told["told"]["replicas"] == {"least": 1, "most": 2}
    assert told["stranger"] == 401
    assert told["load"] == {"replicas": 2, "statuses": [200]}
    assert set(told["niced"]) == {0}
    assert (told["before"], told["after"]) == (1.0, 2.0)
    assert told["grpc"] == {
        "live": True,
        "ready": True,
        "dims": [[512]],
        "refused": "AuthenticationError",
        "unknown": told["grpc"]["unknown"],
    }
    assert told["grpc"]["unknown"] in ("InputError", "MismatchError")
    assert told["killed"]["failures"] == [] and told["killed"]["right"] > 0
    assert told["renamed"] == [404, 200]
    assert told["ended"] == 0 and "stopped" in told["errors"] and "Traceback" not in told["errors"]
