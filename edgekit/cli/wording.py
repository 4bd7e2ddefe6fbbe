"""Figures as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.report.model import Quality


def size_text(size_bytes: float) -> str:
    """Decimal units, three significant digits: 5.32 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{_three(size_bytes)} {unit}"


def ms_text(latency_ms: float | None) -> str:
    return "-" if latency_ms is None else _three(latency_ms)


def percent_text(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def db_text(decibels: float | None) -> str:
    """Infinite where the outputs are equal to the last bit."""
    if decibels is None:
        return "-"
    return "equal" if decibels == math.inf else f"{decibels:.1f}"


def count_text(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quality_text(quality: Quality) -> str:
    """The measure with its interval, against what and on how many samples."""
    as_share = quality.measure in ("accuracy", "top1_agreement")

    def figure(value: float) -> str:
        return percent_text(value) if as_share else f"{value:.4f}" if quality.measure == "cosine" else db_text(value)

    name = {"top1_agreement": "top-1 agreement", "sqnr_db": "SQNR dB"}.get(quality.measure, quality.measure)
    parts = [f"{name} {figure(quality.value)}"]
    if quality.low is not None and quality.high is not None:
        parts.append(f"(95 %: {figure(quality.low)} to {figure(quality.high)})")
    parts.append(f"on {count_text(quality.samples, 'sample')} against {quality.reference}")
    if quality.measure != "sqnr_db" and quality.sqnr_db is not None:
        parts.append(f"; SQNR {db_text(quality.sqnr_db)} dB")
    if not quality.held_out:
        parts.append("; none of them held out from calibration")
    return " ".join(parts).replace(" ;", ";")


def number_text(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def shape_text(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def plain(value: Any) -> Any:
    """A dataclass or a pydantic model as JSON data."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _three(value: float) -> str:
    for limit, digits in ((0.0995, 3), (9.995, 2), (99.95, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"
