"""Tenants of a node, as a TOML file names them: who shares it, by which token, and how much of it is theirs.

[mobile]
token_file = "mobile.token"     # one word; beside this file
share = 3                       # of the rows and of the queue, against the others' (1 without)
rows_per_s = 500                # at most, on average (no bound without)
burst_rows = 1000               # that may come at once (one second's without)

Shares may be a million times apart at most: they are added up and divided by each other, in numbers that must keep all
their digits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import UnknownNameError, UsageError
from edgekit.runtimes.server.schedule import Tenant
from edgekit.runtimes.token_file import read_token

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Of a number: the least and the most.
_NUMBERS = {"share": (0.001, 1000.0), "rows_per_s": (0.001, 1e9), "burst_rows": (1.0, 1e9)}
_KEYS = ("token_file", *_NUMBERS)


@dataclass(frozen=True)
class Guest:
    """A tenant and the token that it shows."""

    tenant: Tenant
    token: str = field(repr=False)


def read_tenants(path: Path) -> tuple[Guest, ...]:
    """Raises UsageError for a file, a key, a number or a token that cannot be."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the tenants of {path}: {error.strerror}", hint="check its path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", hint='[name] and token_file = "name.token"') from error
    if not tables:
        raise UsageError(f"{path} names no tenants, allowed one or more", hint='[name] and token_file = "name.token"')
    guests = tuple(_guest(path, name, table) for name, table in tables.items())
    tokens = {guest.token for guest in guests}
    if len(tokens) != len(guests):
        raise UsageError(f"two tenants of {path} have one token, allowed one each", hint="openssl rand -hex 32 > token")
    return guests


def _guest(path: Path, name: str, table: Any) -> Guest:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name!r} stands outside of a table", hint=f"write [tenant] before {name} = ...")
    for key in table:
        if key not in _KEYS:
            raise UnknownNameError(f"key of the tenant {name}", key, _KEYS)
    file = table.get("token_file")
    if not isinstance(file, str):
        raise UsageError(f"the tenant {name} of {path} has no token_file", hint=f'token_file = "{name}.token"')
    numbers: dict[str, float] = {}
    for key, (least, most) in _NUMBERS.items():
        value = table.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise UsageError(
                f"{key} of the tenant {name} is {value!r:.40}, allowed a number from {least:g} to {most:g}",
                hint="shares count against each other: 3 and 1 do as well as 3000 and 1000",
            )
        numbers[key] = float(value)
    if "burst_rows" in numbers and "rows_per_s" not in numbers:
        raise UsageError(f"the tenant {name} has burst_rows without rows_per_s", hint="give both, or neither")
    return Guest(Tenant(name, **numbers), read_token(path.parent / file))
