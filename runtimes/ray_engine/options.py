"""How many replicas, what each may take of a machine, and how much work is given to one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.runtimes.server.node import NodeOptions

MAX_REPLICAS = 10_000
_ADDRESS = re.compile(r"auto|(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}")


@dataclass(frozen=True)
class Replicas:
    """From `least` to `most`, by load; a fixed number where the two are one."""

    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= MAX_REPLICAS:
            raise UsageError(
                f"{self.least}:{self.most} replicas, allowed MIN:MAX with 1 <= MIN <= MAX <= {MAX_REPLICAS}",
                hint="such as --replicas 2:8, or --replicas 3",
            )

    @classmethod
    def parse(cls, text: str) -> Replicas:
        """ "3" or "2:8". Raises UsageError."""
        found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text.strip(), re.ASCII)
        if found is None:
            raise UsageError(f"{text!r} replicas, allowed N or MIN:MAX", hint="such as --replicas 2:8, or --replicas 3")
        least = int(found[1])
        return cls(least, int(found[2]) if found[2] else least)

    @property
    def scales(self) -> bool:
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}:{self.most}" if self.scales else str(self.least)


@dataclass(frozen=True)
class RayOptions:
    """`node`: what each replica is, and where Ray's proxy (`port`) and, on a cluster started here, the face over gRPC
    (`grpc_port`) listen.

    `cpus`, `gpus`: what Ray sets aside for a replica. `address`: of a running cluster; "" starts one of this machine,
    with `cluster_cpus` to give away (None: its cores, or more where all replicas would not fit), `object_store_bytes`
    and `temp_dir`. `grace_s`: what is inside a replica that has to go may take so long. `retry_s`: a request whose
    replica was lost is sent to another one within that time.
    """

    node: NodeOptions = field(default_factory=lambda: NodeOptions(port=8101, grpc_port=None))
    replicas: Replicas = Replicas()
    cpus: float = 1.0
    gpus: float = 0.0
    grace_s: float = 10.0
    retry_s: float = 20.0
    health_period_s: float = 2.0
    upscale_s: float = 5.0
    downscale_s: float = 60.0
    address: str = ""
    cluster_cpus: int | None = None
    object_store_bytes: int = 256 << 20
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.node.security.client_ca is not None:
            raise UsageError(
                "--client-ca with --engine ray: Ray's proxy does not ask its callers for a certificate",
                hint="use --token-file, or put a proxy that checks certificates in front",
            )
        if self.address and not _ADDRESS.fullmatch(self.address):
            raise UsageError(
                f"the cluster {self.address!r}, allowed auto or host:port", hint="such as --ray-address 10.0.0.1:6379"
            )
        if self.cpus <= 0 or self.gpus < 0:
            raise UsageError(
                f"{self.cpus:g} CPUs and {self.gpus:g} GPUs a replica, allowed CPUs above 0 and GPUs from 0",
                hint="such as --replica-cpus 2 --replica-gpus 0.5",
            )

    @property
    def replica_node(self) -> NodeOptions:
        """The node inside a replica: over gRPC on its machine's loopback where there is a face before it, with as many
        threads as CPUs where none were asked for."""
        return replace(
            self.node,
            host="127.0.0.1",
            port=None,
            grpc_port=None if self.node.grpc_port is None else 0,
            announce=False,
            security=replace(self.node.security, certificate=None),
            threads=self.node.threads or max(1, int(self.cpus)),
        )

    @property
    def target_ongoing(self) -> int:
        """Requests in a replica above which another one is started: a full batch runs, and nobody waits for a second.

        At least two, so that a model that takes one at a time has its next one at hand.
        """
        return max(2, self.node.batch.max_batch * self.node.batch.workers)

    @property
    def max_ongoing(self) -> int:
        """Requests that a replica takes: a batch runs, and its queue is full. The engine itself never has to refuse."""
        return self.node.batch.max_batch * self.node.batch.workers + self.node.batch.queue

    @property
    def max_queued(self) -> int:
        """Requests that may wait in the proxy for a replica; beyond, the answer is 429."""
        return self.node.batch.queue
