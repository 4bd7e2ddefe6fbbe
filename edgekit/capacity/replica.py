"""One replica: a server with its workers, its batching, its memory and what a request costs beside the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.bundle.manifest import Part, TensorEntry
from edgekit.capacity.service import Service
from edgekit.errors import PlanError
from edgekit.planning.link import Link
from edgekit.runtimes.server.schedule import BatchOptions
from edgekit.tensors import DTYPES

# What a node holds beside its models: the interpreter, a runtime, gRPC; measured at 130 to 160 MB on x86-64.
NODE_BYTES = 160e6


@dataclass(frozen=True)
class Overhead:
    """What the node's own work costs, in seconds of its processor: `request_s` a request (decoding, threads, encoding),
    `batch_s` a batch (taking it, giving the answers out); `hop_s` more until an answer is with a caller on the same
    machine. `origin` says where the figures come from."""

    request_s: float = 0.0
    hop_s: float = 0.0
    batch_s: float = 0.0
    origin: str = ""


@dataclass(frozen=True)
class Crossing:
    """Between the device and this server: bytes of a request and of its answer, and the link that carries them."""

    up_bytes: float = 0.0
    down_bytes: float = 0.0
    link: Link | None = None

    @property
    def latency_s(self) -> float:
        """There and back, without the server."""
        if self.link is None:
            return 0.0
        return (self.link.one_way_ms(self.up_bytes) + self.link.one_way_ms(self.down_bytes)) / 1e3


@dataclass(frozen=True)
class Replica:
    """`shares_cores`: the node's own work takes time from the models; without, a core is left for it. `port_mbps`: what
    the server's own network carries in each direction. `deadline_s`: what a request may take in the server."""

    service: Service
    batching: BatchOptions
    overhead: Overhead = Overhead()
    crossing: Crossing = Crossing()
    shares_cores: bool = True
    port_mbps: float = math.inf
    deadline_s: float = math.inf

    @property
    def floor_s(self) -> float:
        """An idle server's answer to one row, at the median, links counted."""
        own_s = self.overhead.request_s + self.overhead.batch_s + self.overhead.hop_s
        return self.service.seconds(1) + own_s + self.crossing.latency_s

    @property
    def most_per_s(self) -> float:
        """Rows a second that no setting of the load can exceed: full batches, the node's own work, the port."""
        return min(self.compute_per_s, self.front_per_s, self.port_per_s)

    @property
    def compute_per_s(self) -> float:
        """Of the workers in full batches, where they share their cores with the node's own work less that."""
        workers, batch = self.batching.workers, self.batching.max_batch
        stolen = batch * self.overhead.request_s / workers if self.shares_cores else 0.0
        return workers * batch / (self.service.mean_seconds(batch) + self.overhead.batch_s + stolen)

    @property
    def front_per_s(self) -> float:
        """Of the node's own work: one interpreter, one request after the other."""
        each = self.overhead.request_s + self.overhead.batch_s / self.batching.max_batch
        return 1 / each if each else math.inf

    @property
    def port_per_s(self) -> float:
        most = max(self.crossing.up_bytes, self.crossing.down_bytes)
        return self.port_mbps * 125_000 / most if most else math.inf

    def with_batching(self, batching: BatchOptions) -> Replica:
        return replace(self, batching=batching)


def tensor_bytes(entries: Sequence[TensorEntry]) -> float:
    """Of one row as raw tensors; a dimension that is open beyond the batch counts as 1."""
    return float(
        sum(
            DTYPES[entry.dtype].itemsize * np.prod([size if isinstance(size, int) else 1 for size in entry.shape])
            for entry in entries
        )
    )


def worker_bytes(part: Part, max_batch: int) -> float:
    """What one worker holds: its own copy of the weights, and activations for a full batch.

    Where the manifest tells no peak of the activations, inputs and outputs stand for them.
    """
    activations = part.peak_activation_bytes or tensor_bytes((*part.inputs, *part.outputs))
    return part.size_bytes + sum(file.size_bytes for file in part.companions) + max_batch * activations


def fitting_workers(part: Part, max_batch: int, memory_bytes: float) -> int:
    """How many workers fit a server's memory. Raises PlanError where none does."""
    each = worker_bytes(part, max_batch)
    count = int((memory_bytes - NODE_BYTES) // each)
    if count < 1:
        raise PlanError(
            f"{part.name} needs {(each + NODE_BYTES) / 1e6:.0f} MB with batches of {max_batch}, and a server has "
            f"{memory_bytes / 1e6:.0f} MB",
            binding="memory",
            hint="give it more --memory, or a smaller --max-batch",
        )
    return count
