"""What a node's own work costs a request on this machine: measured against a real node, not taken from a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle.manifest import Part, Tier
from edgekit.capacity.calibration import pinned
from edgekit.capacity.probe import Caller, Cores, serving
from edgekit.capacity.replica import Overhead

IN_FLIGHT = 24


def measure_overhead(
    bundle: Path,
    name: str,
    part: Part,
    tier: Tier,
    options: Sequence[str] = (),
    *,
    model_threads: int = 1,
    seconds: float = 2.0,
    cores: Cores | None = None,
) -> Overhead:
    """`options` are those of `edgekit serve`, `name` the bundle's in its manifest, `model_threads` how many threads
    compute in all (workers x threads).

    A closed loop keeps the node busy for `seconds`: the threads that spend most run the model, what the others spend is
    the node's own work. One request after another: what a caller waits beyond that and the model, which the node times
    itself. A busy node works less for each request than an idle one, which is woken for it: the first figure says how
    many it can do, and the rest of what an idle one takes is counted as the way. Raises NodeError where the node does
    not start, RemoteError where it does not answer.
    """
    cores = cores or Cores.divide()
    with (
        serving(bundle, tier, options, cores.node) as served,
        pinned(cores.client),
        Caller(served, name, part) as caller,
    ):
        caller.warm_up()
        _, _, before_s = caller.counted()
        calls = caller.alone(seconds / 2)
        _, _, after_s = caller.counted()
        caller.together(IN_FLIGHT, seconds / 4)
        busy = caller.together(IN_FLIGHT, seconds)
    request_s = sum(busy.cpu_s[model_threads:]) / max(1, len(busy.latency_ms))
    hop_s = float(np.mean(calls)) - (after_s - before_s) / len(calls) - request_s
    return Overhead(request_s, max(0.0, hop_s), f"measured on this machine against a node; {cores}")
