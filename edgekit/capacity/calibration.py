"""A part of a bundle timed in its real session, batch size by batch size, the way a node runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.capacity.service import Service, fit_service
from edgekit.devices.machine import this_machine
from edgekit.runtimes.load import load
from edgekit.runtimes.session import Session
from edgekit.runtimes.timing import warm_until_stable
from edgekit.tensors import DTYPES, TensorSpec, shares_batch

WARM_UP_S = 0.5
LEAST_ROUNDS = 5
SAMPLES = 1000


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and those that it starts meanwhile, to cores by number; none: left alone."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def is_batchable(part: Part) -> bool:
    """What a node asks before it joins requests."""
    return shares_batch(entry.shape for entry in (*part.inputs, *part.outputs))


def batch_sizes(part: Part, most: int) -> list[int]:
    """Powers of two up to `most`, and `most`; 1 alone for a part that takes one sample at a time."""
    if not is_batchable(part):
        return [1]
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return sorted({*sizes, most})


def noise_rows(specs: Sequence[TensorSpec], rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal floats, integers of 0 and 1; a dynamic first axis holds `rows`, other dynamic ones 1."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        shape = [size if isinstance(size, int) else (1 if axis else rows) for axis, size in enumerate(spec.shape)]
        dtype = DTYPES[spec.dtype]
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[spec.name] = np.asarray(values, dtype)
    return feeds


def measure_service(
    bundle: Bundle, part: Part, sizes: Sequence[int], threads: int, *, seconds: float = 3.0, cores: Sequence[int] = ()
) -> Service:
    """All `sizes` in turns for about `seconds` (each five times at least), then fitted; `cores` pins the session.

    A batch is joined from single rows within the time, as a node does it. One thread is timed by its own processor
    time, which other programs on the machine do not lengthen; several threads by the clock. A part that takes one
    sample at a time costs its one time for each. Raises what `load` raises.
    """
    with pinned(cores), load(bundle, part=part.name, threads=threads, warmup=0) as session:
        calls = {rows: _call(session, rows) for rows in sizes}
        for call in calls.values():
            warm_until_stable(call, WARM_UP_S)
        times = _in_turns(calls, seconds, time.thread_time_ns if threads == 1 else time.perf_counter_ns)
    medians = {rows: float(np.median(taken)) for rows, taken in times.items()}
    jitter = _jitter(times, medians)
    where = f"measured on this machine ({this_machine().cpu}), {threads} thread{'s' * (threads > 1)}"
    if len(sizes) == 1:
        return Service(0.0, medians[sizes[0]], origin=where, jitter=jitter, residuals=((1, 0.0),))
    return fit_service(medians, where, jitter)


def _jitter(times: dict[int, list[float]], medians: dict[int, float]) -> tuple[float, ...]:
    """A sample of run over median, each run as likely as it is long: what disturbs comes by the second, not by the
    run."""
    ratios = np.concatenate([np.asarray(taken) / medians[rows] for rows, taken in times.items()])
    weights = np.concatenate([np.full(len(taken), medians[rows]) for rows, taken in times.items()])
    drawn = np.random.default_rng(0).choice(ratios, SAMPLES, p=weights / weights.sum())
    return tuple(float(ratio) for ratio in np.sort(drawn))


def _call(session: Session, rows: int) -> Callable[[], object]:
    singles = [noise_rows(session.inputs, 1, seed) for seed in range(rows)]
    if rows == 1:
        return lambda: session.run(singles[0])
    return lambda: session.run({name: np.concatenate([one[name] for one in singles]) for name in singles[0]})


def _in_turns(
    calls: dict[int, Callable[[], object]], seconds: float, clock: Callable[[], int]
) -> dict[int, list[float]]:
    """A round runs each size once, so that a machine that becomes slower slows all of them."""
    times: dict[int, list[float]] = {rows: [] for rows in calls}
    ends, rounds = time.perf_counter() + seconds, 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < ends:
        for rows, call in calls.items():
            start = clock()
            call()
            times[rows].append((clock() - start) * 1e-9)
        rounds += 1
    return times
