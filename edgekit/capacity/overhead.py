"""What a node's own work costs a request on this machine: measured against a real node, not taken from a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle.manifest import Part, Tier
from edgekit.capacity.calibration import pinned
from edgekit.capacity.probe import Caller, Cores, serving
from edgekit.capacity.replica import Overhead
from edgekit.capacity.service import Service

IN_FLIGHT = 24


def measure_overhead(
    bundle: Path,
    name: str,
    part: Part,
    tier: Tier,
    service: Service,
    options: Sequence[str] = (),
    *,
    max_batch: int = 16,
    model_threads: int = 1,
    seconds: float = 2.0,
    cores: Cores | None = None,
) -> Overhead:
    """`service` is the part's own, on as many threads and the same cores; `options` are further ones of `edgekit
    serve`, `name` the bundle's in its manifest, `model_threads` how many threads compute in all (workers x threads).

    Two nodes after another, one that runs single rows and one that runs up to `max_batch`, each kept busy by a closed
    loop for `seconds`: what their processors spend beyond the model is own work, and the difference between the two
    tells what of it comes by the batch. An idle node takes longer, since it is woken for each request: that is counted
    as the way there and back. Raises NodeError where a node does not start, RemoteError where it does not answer.
    """
    cores = cores or Cores.divide()
    points = []
    hop_s = 0.0
    for most in sorted({1, max_batch}):
        words = (*options, "--max-batch", str(most))
        with (
            serving(bundle, tier, words, cores.node) as served,
            pinned(cores.client),
            Caller(served, name, part) as caller,
        ):
            caller.warm_up()
            if most == 1:
                hop_s = _beyond_model_s(caller, seconds / 2)
            caller.together(IN_FLIGHT, seconds / 4)
            points.append(_own_work(caller, service, model_threads, seconds))
    request_s, batch_s = split_work(points)
    return Overhead(
        float(request_s),
        float(max(0.0, hop_s - request_s - batch_s)),
        float(batch_s),
        f"measured on this machine against a node; {cores}",
    )


def _beyond_model_s(caller: Caller, seconds: float) -> float:
    """What a caller waits beyond the model, which the node times itself: one request after another."""
    _, _, before_s = caller.counted()
    calls = caller.alone(seconds)
    _, _, after_s = caller.counted()
    return float(np.mean(calls)) - (after_s - before_s) / len(calls)


def _own_work(caller: Caller, service: Service, model_threads: int, seconds: float) -> tuple[float, float]:
    """(rows of a batch, seconds of own work a request) of a node that is kept busy.

    What is spent beyond the model is near the truth for small models; for large ones it is a small difference, and what
    is spent by the threads that do not compute is nearer. Both leave something out: the larger one counts.
    """
    before = caller.counted()
    busy = caller.together(IN_FLIGHT, seconds)
    after = caller.counted()
    rows = (after[0] - before[0]) / max(1, after[1] - before[1])
    answered = max(1, len(busy.latency_ms))
    model_s = model_threads * service.mean_seconds(max(1.0, rows)) / max(1.0, rows)
    others_s = sum(busy.cpu_s[model_threads:]) / answered
    return max(1.0, rows), max(others_s, sum(busy.cpu_s) / answered - model_s)


def split_work(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(by the request, by the batch) from own work a request at one or two sizes of a batch: work = request + batch /
    rows."""
    (rows, work), (more_rows, less_work) = points[0], points[-1]
    if more_rows <= 1.05 * rows:
        return work, 0.0
    batch_s = min(max(0.0, (work - less_work) / (1 / rows - 1 / more_rows)), rows * work)
    return work - batch_s / rows, batch_s
