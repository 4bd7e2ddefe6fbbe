"""What a device saw in a span of time: counts, and histograms that can be added up over windows and devices."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from edgekit.fleet.protocol.wire import Digest, Wire

MAX_WINDOWS = 64  # of one message

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Bucket = Annotated[int, Field(ge=-400, le=400)]
# Bucket -> how many fell into it; what the buckets are is said by `edgekit.fleet.telemetry.histogram`.
Counts = Annotated[dict[Bucket, Count], Field(max_length=200)]


# Far beyond what is measured, so that sums over a fleet stay numbers whatever one device says.
Measured = Annotated[float, Field(ge=0, le=1e15)]


class LinkSeen(Wire):
    """Medians of the window, as the coordinator measured them while it used the link."""

    bandwidth_mbps: float = Field(gt=0, le=1e15)
    rtt_ms: Measured
    loss: float = Field(ge=0, le=1)


class Health(Wire):
    """Of the whole device; None where it cannot be read."""

    temperature_c: float | None = Field(default=None, ge=-1e6, le=1e6)
    power_w: float | None = Field(default=None, ge=0, le=1e9)
    memory_bytes: Count | None = None
    disk_free_bytes: Count | None = None


class Window(Wire):
    """`sequence` counts a device's windows: one that arrives twice counts once.

    `plan`: the variant that was chosen, "" where none was. `latency`, `confidence`, `inputs`: histograms in ms, in
    0..1, and of each input's mean. `compared`: answers that the cloud's full model gave too, and `agreed`: those with
    the same first class (or a cosine that counts as the same).
    """

    sequence: Count
    started_at: float = Field(ge=0)
    seconds: float = Field(gt=0, le=86_400)
    digest: Digest
    plan: str = Field(default="", max_length=200)
    answered: Count = 0
    errors: Count = 0
    degraded: Count = 0
    late: Count = 0
    compared: Count = 0
    agreed: Count = 0
    latency: Counts = Field(default_factory=dict)
    confidence: Counts = Field(default_factory=dict)
    inputs: Counts = Field(default_factory=dict)
    energy_mj: Measured | None = None
    link: LinkSeen | None = None
    health: Health = Health()

    @model_validator(mode="after")
    def _check(self) -> Window:
        if self.agreed > self.compared:
            raise ValueError(f"{self.agreed} answers agreed of {self.compared} that were compared")
        return self
