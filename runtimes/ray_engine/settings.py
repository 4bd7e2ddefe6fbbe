"""Our options as Ray has them: of its processes, of a cluster of this machine, of the deployment."""

from __future__ import annotations

import logging
import math
import os
import secrets
from typing import Any

from edgekit.errors import NodeError
from edgekit.runtimes.ray_engine.options import RayOptions

APPLICATION = "edgekit"

# A rolling update starts this many more than run, in percent, before it stops any; rounded up.
SURGE_PERCENT = 25
LOOK_BACK_S = 10.0


def own_environment() -> dict[str, str]:
    """No reports to anybody; a token that nothing but the cluster's own processes have, unless one is set;
    replicas and proxies with the priority of other processes (Ray's niceness of 15 starves them on a busy machine);
    patience with a proxy, which Ray otherwise ends before it has begun."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "150",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    }
    if "RAY_AUTH_MODE" not in os.environ:
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return settings


def cluster_settings(options: RayOptions) -> dict[str, Any]:
    """Of `ray.init`, for a cluster of this machine: room for all replicas and for the surge of an update."""
    most = options.replicas.most
    room = (most + math.ceil(most * SURGE_PERCENT / 100)) * options.cpus
    return {
        "num_cpus": options.cluster_cpus or max(os.cpu_count() or 1, math.ceil(room)),
        "object_store_memory": options.object_store_bytes,
        "include_dashboard": False,
        "configure_logging": True,
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        **({"_temp_dir": str(options.temp_dir)} if options.temp_dir else {}),
    }


def deployment_settings(options: RayOptions) -> dict[str, Any]:
    """Of `serve.deployment`."""
    replicas = options.replicas
    scale: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.scales:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": options.target_ongoing,
                "look_back_period_s": LOOK_BACK_S,
                "upscale_delay_s": options.upscale_s,
                "downscale_delay_s": options.downscale_s,
            }
        }
    return {
        "name": APPLICATION,
        **scale,
        "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus},
        "max_ongoing_requests": options.max_ongoing,
        "max_queued_requests": options.max_queued,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1.0},
        "health_check_period_s": options.health_period_s,
        "health_check_timeout_s": max(10.0, 5 * options.health_period_s),
        "graceful_shutdown_timeout_s": 2 * options.grace_s + 1.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": 3,
        "max_surge_percent": SURGE_PERCENT,
    }


def check_cpus(options: RayOptions, had: int) -> None:
    """Raises NodeError where one replica is to have more than this machine: Ray believes any number it is told."""
    if options.cpus > had:
        raise NodeError(
            f"a replica needs {options.cpus:g} CPUs, this machine has {had}",
            hint=f"--replica-cpus {had} or less, or --ray-address of a cluster whose machines have them",
        )


def check_gpus(options: RayOptions, had: float) -> None:
    """Raises NodeError where this machine's GPUs do not suffice for the least number of replicas."""
    needed = options.gpus * options.replicas.least
    if needed > had:
        raise NodeError(
            f"{options.replicas.least} replicas need {needed:g} GPUs, this machine has {had:g}",
            hint="fewer --replicas, a share such as --replica-gpus 0.25, or --ray-address of a cluster that has them",
        )
