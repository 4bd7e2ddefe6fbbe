"""What one request is carried out with: the coordinator, as far as an execution knows it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from edgekit.bundle.manifest import Manifest, Variant
from edgekit.runtimes.coordinator.clock import Clock
from edgekit.runtimes.coordinator.itinerary import Leg, Sent, Timing
from edgekit.runtimes.coordinator.parts import DeviceParts, HeadResult
from edgekit.runtimes.coordinator.route import Route


class Means(Protocol):
    clock: Clock
    parts: DeviceParts
    manifest: Manifest
    timing: Timing
    sender: str

    def submit(self, call: Callable[[], Any]) -> Future[Any]: ...

    def route(self, variant: str) -> Route | None: ...

    def encode(self, variant: Variant, head: HeadResult, leg: Leg, sequence: int) -> tuple[bytes, ...]: ...

    def next_sequence(self) -> int: ...

    def plan_digest(self, variant: str) -> str: ...

    def learn(self, sent: Sent) -> None: ...
