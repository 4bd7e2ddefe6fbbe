"""What a device saw over time: its windows, in spans that a chart can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.service.core import Core
from edgekit.fleet.store.tables import WindowRow
from edgekit.fleet.telemetry.seen import Seen

SPANS = 60
MOST_WINDOWS = 2_000  # read for one chart; older ones are left out, and the page says so


@dataclass(frozen=True)
class Span:
    """Windows of a stretch of time, added up. nan: nobody measured it."""

    starts_at: float
    ends_at: float
    seen: Seen
    digests: tuple[str, ...]
    plans: tuple[str, ...]
    bandwidth_mbps: float
    rtt_ms: float
    temperature_c: float
    power_w: float


@dataclass(frozen=True)
class History:
    """`cut`: there were more windows than are read at once; `since` is where the oldest of them begins."""

    since: float
    until: float
    spans: tuple[Span, ...]
    windows: int
    cut: bool


class Histories:
    def __init__(self, core: Core) -> None:
        self._core = core

    def of(self, device: str, since: float, until: float) -> History:
        """`device`: its id. Windows that began in [since, until)."""
        query = (
            select(WindowRow.content)
            .where(WindowRow.device == device, WindowRow.started_at >= since, WindowRow.started_at < until)
            .order_by(WindowRow.sequence.desc())
            .limit(MOST_WINDOWS + 1)
        )
        with self._core.database.read() as session:
            found = [Window.model_validate(content) for content in session.scalars(query)]
        cut = len(found) > MOST_WINDOWS
        windows = sorted(found[:MOST_WINDOWS], key=lambda window: window.started_at)
        if cut:
            since = windows[0].started_at
        return History(since, until, spans_of(windows, since, until), len(windows), cut)


def spans_of(windows: Sequence[Window], since: float, until: float, most: int = SPANS) -> tuple[Span, ...]:
    """`windows` by their start. Stretches without any are left out."""
    width = max((until - since) / most, 1e-9)
    held: dict[int, list[Window]] = {}
    for window in windows:
        held.setdefault(min(most - 1, int((window.started_at - since) / width)), []).append(window)
    return tuple(_span(found) for _, found in sorted(held.items()))


def _span(windows: Sequence[Window]) -> Span:
    links = [window.link for window in windows if window.link is not None]
    return Span(
        windows[0].started_at,
        max(window.started_at + window.seconds for window in windows),
        Seen.of(windows),
        tuple(dict.fromkeys(window.digest for window in windows)),
        tuple(dict.fromkeys(window.plan for window in windows if window.plan)),
        _mean([link.bandwidth_mbps for link in links]),
        _mean([link.rtt_ms for link in links]),
        _mean([one.health.temperature_c for one in windows if one.health.temperature_c is not None]),
        _mean([one.health.power_w for one in windows if one.health.power_w is not None]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
