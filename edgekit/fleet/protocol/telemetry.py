"""What devices saw over time, as people see it.

GET /v1/telemetry          -> TelemetryView: of a device, a group, or everyone, in steps
GET /v1/telemetry/windows  -> CSV: every window, a line each, as long as the client reads
"""

from __future__ import annotations

from edgekit.fleet.protocol.wire import Heard

# The columns of the export, in their order: name, and what it holds.
EXPORTED: dict[str, str] = {
    "device": "text",
    "sequence": "integer",
    "started_at": "number",
    "seconds": "number",
    "digest": "text",
    "plan": "text",
    "answered": "integer",
    "errors": "integer",
    "degraded": "integer",
    "late": "integer",
    "compared": "integer",
    "agreed": "integer",
    "p50_ms": "number",
    "p95_ms": "number",
    "p99_ms": "number",
    "confidence_p50": "number",
    "input_p50": "number",
    "energy_mj": "number",
    "bandwidth_mbps": "number",
    "rtt_ms": "number",
    "loss": "number",
    "temperature_c": "number",
    "power_w": "number",
}


class SpanView(Heard):
    """A stretch of time with one bundle. None: nobody measured it. `energy_mj`: of an answer."""

    starts_at: float
    seconds: float
    digest: str
    windows: int
    answered: int
    errors: int
    degraded: int
    late: int
    compared: int
    agreement: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    confidence_p50: float | None
    energy_mj: float | None


class TelemetryView(Heard):
    """`scope`: "device NAME", "group NAME" or "everyone". `cut`: more windows than are read at once; the oldest are
    left out."""

    scope: str
    since: float
    until: float
    step_s: float
    spans: tuple[SpanView, ...]
    cut: bool = False
