"""Ray's processes and proxies, started with more patience than Ray itself has: on a busy machine or a small one they
take minutes, and Ray gives up after 30 and 60 s."""

from __future__ import annotations

import logging
import time

from edgekit.runtimes.ray_engine.options import RayOptions
from edgekit.runtimes.ray_engine.settings import cluster_settings

START_S, POLL_S = 300.0, 0.2

logger = logging.getLogger("edgekit")


def start_ray(options: RayOptions) -> None:
    """Joins the cluster at the address, or starts one here, again while Ray says that it took too long, as its
    own processes do of each other on a busy machine. Raises what Ray raises, that after START_S."""
    import ray

    if options.address:
        ray.init(address=options.address, configure_logging=False, log_to_driver=False)
        return
    until = time.monotonic() + START_S
    while True:
        try:
            ray.init(**cluster_settings(options))
            return
        except Exception as error:  # of no kind of its own
            ray.shutdown()
            if time.monotonic() > until or "timed out" not in str(error).lower():
                raise
            logger.info("Ray: %s; started again", error)
            time.sleep(POLL_S)


def start_proxies(options: RayOptions, settings: dict[str, str]) -> None:
    """Returns when every machine's proxy answers. `settings`: the environment of a foreign cluster's controller.
    Raises what Ray raises, and TimeoutError after START_S."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    node = options.node
    chain, key = node.security.certificate or (None, None)
    until = time.monotonic() + START_S
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={
                "host": node.host,
                "port": node.port,
                "ssl_certfile": str(chain) if chain else None,
                "ssl_keyfile": str(key) if key else None,
            },
            controller_options={"runtime_env": {"env_vars": settings}} if options.address else None,
        )
    except TimeoutError:
        _wait_for_proxies(until)  # the controller goes on with them


def _wait_for_proxies(until: float) -> None:
    from ray import serve

    while True:
        states = {str(getattr(state, "value", state)) for state in serve.status().proxies.values()}
        if states == {"HEALTHY"}:
            return
        if time.monotonic() > until:
            raise TimeoutError(f"proxies not available after {START_S:g} s ({', '.join(sorted(states)) or 'none'})")
        time.sleep(POLL_S)
