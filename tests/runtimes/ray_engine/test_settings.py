from __future__ import annotations

import math

import pytest

from edgekit.errors import NodeError
from edgekit.runtimes.ray_engine import RayOptions, Replicas
from edgekit.runtimes.ray_engine.settings import (
    SURGE_PERCENT,
    check_cpus,
    check_gpus,
    cluster_settings,
    deployment_settings,
    own_environment,
)
from edgekit.runtimes.server import BatchOptions, NodeOptions


def test_a_range_scales_by_load_and_a_number_stays() -> None:
    options = RayOptions(NodeOptions(batch=BatchOptions(max_batch=8)), Replicas(2, 8), upscale_s=3.0)
    scaled = deployment_settings(options)
    assert "num_replicas" not in scaled
    scale = scaled["autoscaling_config"]
    assert (scale["min_replicas"], scale["max_replicas"], scale["upscale_delay_s"]) == (2, 8, 3.0)
    assert scale["target_ongoing_requests"] == options.target_ongoing == 8
    fixed = deployment_settings(RayOptions(replicas=Replicas(3, 3)))
    assert fixed["num_replicas"] == 3 and "autoscaling_config" not in fixed


def test_a_cluster_of_this_machine_has_room_for_an_updates_surge() -> None:
    options = RayOptions(replicas=Replicas(2, 50), cpus=2.0)
    surge = math.ceil(50 * SURGE_PERCENT / 100)
    assert cluster_settings(options)["num_cpus"] >= (50 + surge) * 2
    assert cluster_settings(RayOptions(cluster_cpus=3))["num_cpus"] == 3
    assert cluster_settings(options)["include_dashboard"] is False


def test_its_processes_have_a_token_of_their_own_and_report_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    first, second = own_environment(), own_environment()
    assert first["RAY_AUTH_MODE"] == "token" and first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_TOKEN" not in own_environment()


def test_replicas_are_not_starved_by_their_neighbours() -> None:
    assert own_environment()["RAY_worker_niceness"] == "0"


def test_a_replica_that_is_larger_than_the_machine_is_told_before_anything_starts() -> None:
    check_cpus(RayOptions(cpus=2.0), 2)
    with pytest.raises(NodeError, match="a replica needs 100000 CPUs, this machine has 2"):
        check_cpus(RayOptions(cpus=100_000.0), 2)


def test_too_few_gpus_are_told_before_anything_waits_for_them() -> None:
    options = RayOptions(replicas=Replicas(2, 4), gpus=0.5)
    check_gpus(options, 1.0)
    with pytest.raises(NodeError, match="need 1 GPUs, this machine has 0"):
        check_gpus(options, 0.0)
