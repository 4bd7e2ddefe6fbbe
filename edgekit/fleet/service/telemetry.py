"""What devices saw over time: one device by its windows, a group by its spans, and every window for export."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence

from sqlalchemy import select

from edgekit.errors import AbsentError, UsageError
from edgekit.fleet.protocol.telemetry import EXPORTED, SpanView, TelemetryView
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.groups import labels_of
from edgekit.fleet.service.spans import EVERYONE, SPAN_S, from_plain
from edgekit.fleet.store.tables import Device, Group, SpanRow, WindowRow
from edgekit.fleet.telemetry.histogram import percentile
from edgekit.fleet.telemetry.seen import Seen

MOST_STEPS = 2_000
MOST_WINDOWS = 50_000  # of one device: 17 days of one each half minute
AT_ONCE = 2_000  # rows of a query of the export


class Telemetry:
    def __init__(self, core: Core) -> None:
        self._core = core

    def of_device(self, key: str, since: float, until: float, step_s: float) -> TelemetryView:
        """By id or name. Raises AbsentError, UsageError for too many steps."""
        _check(since, until, step_s)
        with self._core.database.read() as session:
            row = session.scalar(select(Device).where((Device.id == key) | (Device.name == key)))
            if row is None:
                raise AbsentError(f"no device {key}", hint="edgekit fleet devices lists them")
            found = session.execute(
                select(WindowRow.started_at, WindowRow.digest, WindowRow.content)
                .where(WindowRow.device == row.id, WindowRow.started_at >= since, WindowRow.started_at < until)
                .order_by(WindowRow.sequence.desc())
                .limit(MOST_WINDOWS + 1)
            ).all()
        held: dict[tuple[float, str], list[Window]] = {}
        for started_at, digest, content in found[:MOST_WINDOWS]:
            held.setdefault((_step_of(started_at, step_s), digest), []).append(Window.model_validate(content))
        spans = {key: Seen.of(windows) for key, windows in held.items()}
        return _view(f"device {row.name}", since, until, step_s, spans, len(found) > MOST_WINDOWS)

    def of_group(self, name: str, since: float, until: float, step_s: float) -> TelemetryView:
        """Of everyone for "". `step_s` is rounded up to whole spans. Raises AbsentError, UsageError."""
        step_s = SPAN_S * math.ceil(step_s / SPAN_S)
        _check(since, until, step_s)
        with self._core.database.read() as session:
            if name and session.get(Group, name) is None:
                raise AbsentError(f"no group {name}", hint="edgekit fleet groups lists them")
            found = session.execute(
                select(SpanRow.starts_at, SpanRow.digest, SpanRow.content).where(
                    SpanRow.scope == (name or EVERYONE),
                    SpanRow.starts_at >= SPAN_S * math.floor(since / SPAN_S),
                    SpanRow.starts_at < until,
                )
            ).all()
        spans: dict[tuple[float, str], Seen] = {}
        for starts_at, digest, content in found:
            key = (_step_of(starts_at, step_s), digest)
            spans[key] = spans.get(key, Seen()) + from_plain(content)
        return _view(f"group {name}" if name else "everyone", since, until, step_s, spans, False)

    def export(self, selector: str, since: float, until: float) -> Iterator[str]:
        """CSV with a header, a line for each window, device by device; read as it is asked for. Raises UsageError for
        the selector, before the first line."""
        parsed = Selector.parse(selector)
        with self._core.database.read() as session:
            rows = session.scalars(select(Device).order_by(Device.name).execution_options(yield_per=500))
            devices = [(row.id, row.name) for row in rows if parsed.holds(labels_of(row))]
        return self._lines(devices, since, until)

    def _lines(self, devices: Sequence[tuple[str, str]], since: float, until: float) -> Iterator[str]:
        yield _csv([list(EXPORTED)])
        for device, name in devices:
            after = -1
            while True:
                with self._core.database.read() as session:
                    found = session.execute(
                        select(WindowRow.sequence, WindowRow.content)
                        .where(WindowRow.device == device, WindowRow.sequence > after)
                        .where(WindowRow.started_at >= since, WindowRow.started_at < until)
                        .order_by(WindowRow.sequence)
                        .limit(AT_ONCE)
                    ).all()
                if found:
                    yield _csv([_line(name, Window.model_validate(content)) for _, content in found])
                    after = found[-1].sequence
                if len(found) < AT_ONCE:
                    break


def _check(since: float, until: float, step_s: float) -> None:
    steps = (until - since) / step_s
    if not 0 < steps <= MOST_STEPS:
        raise UsageError(f"{steps:.0f} steps, allowed 1 to {MOST_STEPS}", hint="a later --since, or a longer --step")


def _step_of(moment: float, step_s: float) -> float:
    return step_s * math.floor(moment / step_s)


def _view(
    scope: str, since: float, until: float, step_s: float, spans: dict[tuple[float, str], Seen], cut: bool
) -> TelemetryView:
    shown = tuple(_span(starts_at, step_s, digest, spans[starts_at, digest]) for starts_at, digest in sorted(spans))
    return TelemetryView(scope=scope, since=since, until=until, step_s=step_s, spans=shown, cut=cut)


def _span(starts_at: float, step_s: float, digest: str, seen: Seen) -> SpanView:
    return SpanView(
        starts_at=starts_at,
        seconds=step_s,
        digest=digest,
        windows=seen.windows,
        answered=seen.answered,
        errors=seen.errors,
        degraded=seen.degraded,
        late=seen.late,
        compared=seen.compared,
        agreement=_told(seen.agreement),
        p50_ms=_told(seen.latency_ms(0.5)),
        p95_ms=_told(seen.latency_ms(0.95)),
        p99_ms=_told(seen.latency_ms(0.99)),
        confidence_p50=_told(percentile(seen.confidence, 0.5)),
        energy_mj=_told(seen.energy_per_answer_mj),
    )


def _told(value: float) -> float | None:
    return None if math.isnan(value) else value


def _line(name: str, window: Window) -> list[object]:
    """In the order of EXPORTED."""
    link, health = window.link, window.health
    numbers: list[object] = [
        *(_told(percentile(window.latency, share)) for share in (0.5, 0.95, 0.99)),
        _told(percentile(window.confidence, 0.5)),
        _told(percentile(window.inputs, 0.5)),
        window.energy_mj,
        *((None, None, None) if link is None else (link.bandwidth_mbps, link.rtt_ms, link.loss)),
        health.temperature_c,
        health.power_w,
    ]
    return [
        name,
        window.sequence,
        window.started_at,
        window.seconds,
        window.digest,
        # A spreadsheet takes what begins so for a formula.
        f"'{window.plan}" if window.plan[:1] in ("=", "+", "-", "@") else window.plan,
        window.answered,
        window.errors,
        window.degraded,
        window.late,
        window.compared,
        window.agreed,
        *(round(value, 4) if isinstance(value, float) else value for value in numbers),
    ]


def _csv(rows: list[list[object]] | list[list[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
