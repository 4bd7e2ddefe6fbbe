"""Frames of many devices at the rates that an LTE link gives them: batches of mixed rates beside batches of one rate.

python samples/benchmarks/mixed_rates.py --bundle cats.edgekit [--batches 200]

Each device is at its own moment of the trace `lte` and sends, as soon as it is answered, its next frame at the finest
rate whose frame crosses the link within 8 ms there (a quarter of a picture's time at 30 a second). The queue, its
policy (`runtimes/server/schedule.py`), decoding and the tail are the node's own, driven by one thread without protocol
and without a network, so that nothing but the batching differs: mixed, any frames run together; by rate, those of one.

Measured: this machine's processor. Simulated: the same queue in virtual time on what the latency model predicts of the
tail on each device with a GPU (no GPU ran anything), frames decoded beside it and at no cost.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, rounded, save

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.capacity.service import predict_service
from edgekit.devices.device import load_device
from edgekit.planning.named_traces import trace_named
from edgekit.runtimes.load import load
from edgekit.runtimes.server.model import Link, open_link
from edgekit.runtimes.server.schedule import Batch, BatchOptions, Schedule, Ticket

BUDGET_S, MAX_BATCH, ROUNDS, STEP_S = 0.008, 16, 5, 0.25
DEVICES = (16, 32, 64)
GPUS = ("jetson-orin-nano", "jetson-agx-orin")


@dataclass(eq=False)
class Frame(Ticket):
    device: int = 0
    rate: int = 0


class Devices:
    """`rate(device)`: of its next frame; each call moves the device STEP_S on in the trace."""

    def __init__(self, count: int, rate_bytes: Sequence[float], seed: int = 0) -> None:
        self._trace, self._bytes = trace_named("lte", seed), rate_bytes
        generator = random.Random(seed)
        self._moment = [generator.uniform(0, self._trace.duration_s) for _ in range(count)]
        self.sent: Counter[int] = Counter()

    def rate(self, device: int) -> int:
        self._moment[device] = (self._moment[device] + STEP_S) % self._trace.duration_s
        room = BUDGET_S * self._trace.at(self._moment[device]).bytes_per_s
        rate = next((rate for rate, size in enumerate(self._bytes) if size <= room), len(self._bytes) - 1)
        self.sent[rate] += 1
        return rate


def drive(
    devices: Devices, count: int, mixed: bool, run: Callable[[Batch], float], batches: int
) -> tuple[float, float]:
    """Answers a second and mean rows of a batch, on the clock that `run` advances by what it gives (seconds)."""
    schedule = Schedule("tail", BatchOptions(max_batch=MAX_BATCH, queue=count))

    def send(device: int, now: float) -> None:
        rate = devices.rate(device)
        schedule.admit([Frame(1, None if mixed else rate, device=device, rate=rate)], now)

    now = 0.0
    for device in range(count):
        send(device, now)
    answered = runs = 0
    while runs < batches and (batch := schedule.take(now)) is not None:
        now += run(batch)
        schedule.finish(batch, now)
        answered, runs = answered + batch.rows, runs + 1
        for ticket in batch.tickets:
            assert isinstance(ticket, Frame)
            send(ticket.device, now)
    return answered / now, answered / runs


def measured(
    part: Part, bundle: Bundle, link: Link, frames: Sequence[tuple[bytes, Any]], count: int, batches: int
) -> Any:
    """Decoding and running, as `gate` and `batching` do it."""
    name = part.inputs[0].name
    rates_bytes = [rate.bytes_p95 for rate in link.entry.rates]
    rows: dict[str, list[tuple[float, float]]] = {"mixed": [], "by rate": []}
    with load(bundle, part=part.name, threads=1) as session:

        def run(batch: Batch) -> float:
            start = time.perf_counter()
            features = []
            for ticket in batch.tickets:
                assert isinstance(ticket, Frame)
                payload, shapes = frames[ticket.rate]
                features += link.codec.decode(payload, shapes, ticket.rate)
            session.run({name: np.concatenate(features)})
            return time.perf_counter() - start

        for turn in range(ROUNDS + 1):
            for label in rows:
                devices = Devices(count, rates_bytes, turn)
                found = drive(devices, count, label == "mixed", run, batches)
                if turn:
                    rows[label].append(found)
    return _told(rows, devices.sent)


def simulated(part: Part, device: str, rates_bytes: Sequence[float], count: int) -> dict[str, Any]:
    profile = load_device(device)
    format = next(name for name in ("tensorrt", "onnx") if name in profile.formats)
    service = predict_service(part.model_copy(update={"format": format}), profile, (1, 2, 4, 8, 16))
    rows: dict[str, list[tuple[float, float]]] = {"mixed": [], "by rate": []}
    for turn in range(ROUNDS):
        for label in rows:
            devices = Devices(count, rates_bytes, turn)
            rows[label].append(drive(devices, count, label == "mixed", lambda batch: service.seconds(batch.rows), 20.0))
    return {
        **_told(rows, devices.sent),
        "one_row_ms": 1e3 * service.seconds(1),
        "16_rows_ms": 1e3 * service.seconds(16),
    }


def _told(rows: dict[str, list[tuple[float, float]]], sent: Counter[int]) -> dict[str, Any]:
    rate = {label: statistics.median(rate for rate, _ in found) for label, found in rows.items()}
    batch = {label: statistics.median(size for _, size in found) for label, found in rows.items()}
    total = sum(sent.values())
    shares = {str(rung): count / total for rung, count in sorted(sent.items())}
    return {"per_s": rate, "rows_of_a_batch": batch, "ratio": rate["mixed"] / rate["by rate"], "share_of_rates": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--batches", type=int, default=200)
    given = parser.parse_args()
    with Bundle.open(given.bundle) as bundle:
        manifest = bundle.manifest
        variant = next(
            v for v in manifest.variants if len(v.parts) == 2 and manifest.codec(v.codecs[0]).kind == "transform"
        )
        head, tail = (manifest.part(name) for name in variant.parts)
        link = open_link(bundle, variant.codecs[0])
        with load(bundle, part=head.name, threads=1) as session:
            spec = session.inputs[0]
            shape = [1, *(size for size in spec.shape[1:] if isinstance(size, int))]
            picture = np.random.default_rng(0).normal(size=shape).astype(spec.dtype)
            features = [session.run({spec.name: picture})[entry.name] for entry in link.entry.features]
        shapes = [array.shape for array in features]
        frames = [(link.codec.encode(features, rate), shapes) for rate in range(len(link.entry.rates))]
        rates_bytes = [rate.bytes_p95 for rate in link.entry.rates]
        result: dict[str, Any] = {"bundle": manifest.name, "tail": tail.name}
        for count in DEVICES:
            rows = {"this machine": measured(tail, bundle, link, frames, count, given.batches)}
            rows |= {f"simulated, {gpu}": simulated(tail, gpu, rates_bytes, count) for gpu in GPUS}
            result[f"{count} devices"] = rows
    for label, row in rounded(result).items():
        print(label, row, flush=True)
    print("written:", save("mixed_rates", {**environment(1, ("onnxruntime",)), **rounded(result)}))


if __name__ == "__main__":
    main()
