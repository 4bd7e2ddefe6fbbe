"""Prometheus metrics of a node, in a registry of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as Total
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from edgekit.errors import EdgekitError
from edgekit.runtimes.protocol.status import error_kind
from edgekit.runtimes.server.batching import Finished

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Waiting(Protocol):
    @property
    def depth(self) -> int: ...


class Metrics:
    """The label `model` is "" for names that the node does not hold: strangers must not make up time series."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Total("edgekit_requests", "Requests answered", ["model"], registry=registry)
        self._failures = Total("edgekit_failures", "Requests refused or failed", ["model", "kind"], registry=registry)
        self._request_s = Histogram(
            "edgekit_request_seconds", "Inside the node", ["model"], registry=registry, buckets=_SECONDS
        )
        self._queue_s = Histogram(
            "edgekit_queue_seconds", "Waiting for the model", ["model"], registry=registry, buckets=_SECONDS
        )
        self._compute_s = Histogram(
            "edgekit_compute_seconds", "A run of the model", ["model"], registry=registry, buckets=_SECONDS
        )
        self._batch = Histogram("edgekit_batch_rows", "Rows run together", ["model"], registry=registry, buckets=_ROWS)
        self._ends = Total(
            "edgekit_iterations", "Iterated requests, by how they ended", ["model", "finish"], registry=registry
        )
        self._steps = Total("edgekit_steps", "Rows of steps of iterated models", ["model"], registry=registry)
        self._stage_s = Histogram(
            "edgekit_stage_seconds",
            "Making inputs of pictures and texts, and labels of outputs",
            ["model", "stage"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._forward_s = Histogram(
            "edgekit_forward_seconds", "Waiting for the upstream", registry=registry, buckets=_SECONDS
        )
        self._bytes = Total("edgekit_bytes", "Bodies, by protocol and way", ["protocol", "way"], registry=registry)
        self._bytes_of = {
            (protocol, way): self._bytes.labels(protocol, way) for protocol in ("grpc", "rest") for way in ("in", "out")
        }

    def request(self, model: str, error: EdgekitError | None, request_ns: int, queue_ns: int) -> None:
        if error is None:
            self._requests.labels(model).inc()
            self._request_s.labels(model).observe(request_ns / 1e9)
            self._queue_s.labels(model).observe(queue_ns / 1e9)
        else:
            self.refused(model, error)

    def refused(self, model: str, error: EdgekitError) -> None:
        self._failures.labels(model, error_kind(error)).inc()

    def iterated(self, model: str, finish: str, steps: int) -> None:
        self._ends.labels(model, finish).inc()
        self._steps.labels(model).inc(steps)

    def staged(self, model: str, stage: str, ns: int) -> None:
        """`stage`: preprocess or postprocess."""
        self._stage_s.labels(model, stage).observe(ns / 1e9)

    def forwarded(self, ns: int) -> None:
        self._forward_s.observe(ns / 1e9)

    def moved(self, protocol: str, received: int, sent: int) -> None:
        self._bytes_of[protocol, "in"].inc(received)
        self._bytes_of[protocol, "out"].inc(sent)

    def batch_observer(self, model: str) -> Callable[[Finished], None]:
        seconds, rows = self._compute_s.labels(model), self._batch.labels(model)

        def observe(batch: Finished) -> None:
            seconds.observe((batch.ended_ns - batch.started_ns) / 1e9)
            rows.observe(batch.rows)

        return observe

    def watch_queues(self, models: Callable[[], Sequence[tuple[str, Waiting]]]) -> None:
        """(name, model): their depths are read when the metrics are, and summed over the versions of a name."""
        self._registry.register(_Depths(models))

    def render(self) -> bytes:
        """Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text


class _Depths:
    def __init__(self, models: Callable[[], Sequence[tuple[str, Waiting]]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Any]:
        family = GaugeMetricFamily("edgekit_queue_depth", "Requests that wait", labels=["model"])
        depths: Counter[str] = Counter()
        for name, model in self._models():
            depths[name] += model.depth
        for name, depth in depths.items():
            family.add_metric([name], depth)
        yield family

    def describe(self) -> Iterable[Any]:
        return []
