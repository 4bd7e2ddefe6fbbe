"""One span as it lies in a file or comes from a node: one JSON object, attributes beside its own fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

NS_PER_MS = 1e6

# What services are called: this and the tier.
SERVICE_PREFIX = "edgekit-"

_FINE = ("UNSET", "OK")

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Span(BaseModel):
    """`service` is edgekit- and the tier; `instance` one process, within which all spans share a clock. `start_ns`:
    since 1970. `status`: UNSET, OK, or what went wrong. Attributes are extra fields, named edgekit.*."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(min_length=1, max_length=256)
    trace_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    span_id: _Id
    parent_id: _Id | None = None
    service: str = Field(default="", max_length=256)
    instance: str = Field(default="", max_length=64)
    kind: str = Field(default="internal", max_length=16)
    start_ns: int = Field(ge=0, lt=1 << 63)
    duration_ms: float = Field(ge=0, le=1e12, allow_inf_nan=False)
    status: str = Field(default="UNSET", max_length=4096)

    @property
    def end_ns(self) -> int:
        return self.start_ns + round(self.duration_ms * NS_PER_MS)

    @property
    def tier(self) -> str:
        return self.service.removeprefix(SERVICE_PREFIX) or "?"

    @property
    def process(self) -> str:
        """Spans of one process share its clock; files of nodes that name no instance go by their service."""
        return self.instance or self.service

    @property
    def is_error(self) -> bool:
        return self.status not in _FINE

    def attribute(self, name: str) -> Any:
        """edgekit.`name`, None where it is missing."""
        return (self.model_extra or {}).get(f"edgekit.{name}")
