"""One option of an export: what it means to a user, and which values it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field
from typing import Any, cast

from edgekit.errors import UnknownNameError, UsageError

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Option:
    """What a field of Recipe means to a user.

    `choices` closes the set of values; `suggestions` only helps a shell to complete an open one. `kind` is what an
    error calls the value. `shapes_artifact` is False for options that leave the exported bytes as they are (paths,
    keys, presentation), which therefore stay out of the bundle's provenance. `repeats`: the command line takes it
    several times, and joins the values with commas.
    """

    name: str
    type: type
    default: Scalar
    required: bool
    help: str
    group: str
    kind: str
    metavar: str
    short: str | None
    choices: Callable[[], Iterable[str]] | None
    suggestions: Callable[[], Iterable[str]] | None
    minimum: float | None
    is_path: bool
    shapes_artifact: bool
    repeats: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Scalar:
        """The value as its field holds it. Raises UsageError or UnknownNameError."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if value is None and self.default is None and not self.required:
            return None
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
            raise UsageError(
                f"{self.name} is {value!r} ({type(value).__name__}), allowed {self.type.__name__}",
                hint=f"{self.name}: {self.help}",
            )
        if self.choices is not None and value not in set(self.choices()):
            raise UnknownNameError(self.kind, str(value), self.choices())
        if self.minimum is not None and isinstance(value, int | float) and not value >= self.minimum:
            raise UsageError(f"{self.name} is {value}, allowed {self.minimum:g} or more")
        return cast(Scalar, value)


def option(
    help: str,
    group: str,
    *,
    default: Any = MISSING,
    kind: str = "",
    metavar: str = "",
    short: str | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
    suggestions: Callable[[], Iterable[str]] | None = None,
    minimum: float | None = None,
    is_path: bool = False,
    shapes_artifact: bool = True,
    repeats: bool = False,
) -> Any:
    """A field of Recipe; without a default it must be given."""
    facts = {
        "help": help,
        "group": group,
        "kind": kind,
        "metavar": metavar,
        "short": short,
        "choices": choices,
        "suggestions": suggestions,
        "minimum": minimum,
        "is_path": is_path,
        "shapes_artifact": shapes_artifact,
        "repeats": repeats,
    }
    return field(default=default, metadata=facts)
