"""What groups saw over time, added up while it comes in: five minutes, a group and a bundle make one span.

A day of ten thousand devices are thirty million windows, which no page and no command can read; their spans are some
hundred rows. A worker adds to rows of its own, and writes those that grew every few seconds in the transaction of the
windows. A worker that is killed loses what it added since; the windows themselves are stored all the same.
"""

from __future__ import annotations

import json
import math
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.telemetry.seen import Seen

SPAN_S = 300.0
EVERYONE = "*"  # the scope of all devices; a group's is its name
MOST = 4_000  # spans in memory; what grew least lately goes first
_NUMBERS = ("windows", "answered", "errors", "degraded", "late", "compared", "agreed", "energy_mj", "metered")
_HISTOGRAMS = ("latency", "confidence", "inputs")

Key = tuple[str, float, str, str]  # scope, start, digest, part

PG_SPANS = (
    "INSERT INTO spans (scope, starts_at, digest, part, content) SELECT scope, starts_at, digest, part, content::jsonb "
    "FROM unnest(%s::text[], %s::float8[], %s::text[], %s::text[], %s::text[]) "
    "AS v(scope, starts_at, digest, part, content) "
    "ON CONFLICT (scope, starts_at, digest, part) DO UPDATE SET content = excluded.content"
)
LITE_SPANS = (
    "INSERT INTO spans (scope, starts_at, digest, part, content) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (scope, starts_at, digest, part) DO UPDATE SET content = excluded.content"
)


class Spans:
    """Of one worker; of one thread."""

    def __init__(self) -> None:
        self._worker, self._generation = secrets.token_hex(16), 0
        self._held: OrderedDict[Key, Seen] = OrderedDict()
        self._grown: set[Key] = set()

    @property
    def grown(self) -> int:
        """Spans that are to be written."""
        return len(self._grown)

    def add(self, arrived: Iterable[tuple[tuple[str, ...], Sequence[Window]]]) -> None:
        """(groups of a device, its windows) each."""
        sorted_out: dict[tuple[str, float, str], list[Window]] = {}
        for groups, windows in arrived:
            for window in windows:
                starts_at = SPAN_S * math.floor(window.started_at / SPAN_S)
                for scope in (EVERYONE, *groups):
                    sorted_out.setdefault((scope, starts_at, window.digest), []).append(window)
        part = f"{self._worker}-{self._generation}"
        for (scope, starts_at, digest), windows in sorted_out.items():
            key = (scope, starts_at, digest, part)
            self._held[key] = without_values(self._held.get(key, Seen()) + Seen.of(windows))
            self._held.move_to_end(key)
            self._grown.add(key)

    def write(self, connection: Connection) -> None:
        """Those that grew; they count as grown until `written`."""
        rows = [(*key, json.dumps(to_plain(self._held[key]))) for key in sorted(self._grown)]
        if not rows:
            return
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(LITE_SPANS, rows)
        else:
            connection.exec_driver_sql(PG_SPANS, tuple(list(column) for column in zip(*rows, strict=True)))

    def written(self) -> None:
        """The transaction is stored."""
        self._grown.clear()
        if len(self._held) > MOST:
            # What is let go of must not be written over: what comes for it later makes another part.
            self._held.clear()
            self._generation += 1


def without_values(seen: Seen) -> Seen:
    """Counts and histograms alone, which do not grow with the number of windows."""
    return from_plain(to_plain(seen))


def to_plain(seen: Seen) -> dict[str, Any]:
    """As JSON has it; what is zero or empty is left out."""
    return {name: found for name in (*_NUMBERS, *_HISTOGRAMS) if (found := getattr(seen, name))}


def from_plain(content: Mapping[str, Any]) -> Seen:
    """Unknown names are passed over: a newer worker may have written it."""
    known = {one.name for one in fields(Seen)}
    held: dict[str, Any] = {name: content[name] for name in _NUMBERS if name in content and name in known}
    for name in _HISTOGRAMS:
        held[name] = {int(bucket): count for bucket, count in content.get(name, {}).items()}
    return Seen(**held)
