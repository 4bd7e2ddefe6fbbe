"""What every message shares, and the names that occur in them."""

from __future__ import annotations

import secrets
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

API = "/v1"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Identifier = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
Labels = Annotated[dict[Name, LabelValue], Field(max_length=32, json_schema_extra={"additionalProperties": False})]
Text = Annotated[str, Field(max_length=2000)]

Item = TypeVar("Item")


class Wire(BaseModel):
    """Unknown keys are errors; neither nan nor infinity is a number; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Heard(BaseModel):
    """What the service says to an agent or a client: an older one passes over keys that it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Page(Heard, Generic[Item]):
    """`next`: give it as `after` to read on; None at the end."""

    items: tuple[Item, ...]
    next: str | None = None


class Problem(Heard):
    """The body of every error."""

    error: str
    hint: str = ""
    kind: str = ""


def new_identifier() -> str:
    return secrets.token_hex(16)
