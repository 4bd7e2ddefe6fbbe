"""Times, sizes and states as people read them: the filters of the templates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from edgekit.report.text import DASH, size_text

STATE_WORDS = {
    "right": "runs what it should",
    "moving": "on its way",
    "failed": "refused, old slot answers",
    "lost": "not heard of",
    "idle": "nothing to run",
    "revoked": "revoked",
}
ROLLOUT_WORDS = {
    "running": "under way",
    "paused": "paused",
    "rolling-back": "rolling back",
    "complete": "complete",
    "rolled-back": "rolled back",
    "aborted": "aborted",
}
_SPANS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))


def moment(at: float | None) -> str:
    """2026-11-30 03:05:12 UTC"""
    return "never" if at is None or math.isnan(at) else f"{_utc(at):%Y-%m-%d %H:%M:%S} UTC"


def span_text(seconds: float) -> str:
    """The largest unit that fits: 3 d, 5 h, 12 min, 40 s."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{seconds:.0f} s"


@pass_context
def when(context: Context, at: float | None) -> Markup:
    """As far from `now` of the context, with the moment itself for who hovers."""
    if at is None or math.isnan(at):
        return Markup("never")
    apart = float(context["now"]) - at
    near = "just now" if abs(apart) < 60 else f"{span_text(apart)} ago" if apart > 0 else f"in {span_text(-apart)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(_utc(at).isoformat(), moment(at), near)


def percent(share: float) -> str:
    return DASH if math.isnan(share) else f"{100 * share:.3g} %"


def number(value: float | None, unit: str = "") -> str:
    """Three digits; a dash for what nobody measured."""
    if value is None or math.isnan(value):
        return DASH
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}" if unit else text


def count(value: int, one: str = "", many: str = "") -> str:
    """1,234 devices"""
    noun = one if value == 1 else (many or f"{one}s")
    return f"{value:,} {noun}" if one else f"{value:,}"


def short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"


def labels(found: Mapping[str, str]) -> str:
    """board=rpi4, site=lab"""
    return ", ".join(f"{key}={value}" for key, value in sorted(found.items()))


def detail(found: Mapping[str, Any]) -> str:
    """What the audit log says beside actor, action and subject."""
    words = (f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in found.items())
    return "; ".join(word for word in words if not word.endswith((" null", " [], ", " {}")))


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)


FILTERS = {
    "moment": moment,
    "span": span_text,
    "when": when,
    "percent": percent,
    "number": number,
    "count": count,
    "short": short,
    "labels": labels,
    "detail": detail,
    "size": size_text,
}
