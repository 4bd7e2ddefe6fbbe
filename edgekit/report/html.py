"""The report as one HTML file: no script, nothing fetched from anywhere; readable aloud, on paper, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from edgekit.report.model import EvaluationReport
from edgekit.report.sections import (
    candidates_section,
    layers_section,
    parity_section,
    provenance_section,
    roofline_section,
    samples_section,
    speed_section,
)
from edgekit.report.split import information_section, split_section
from edgekit.report.style import CSS
from edgekit.report.text import MEASURES, PRUNING, TIMES, measure_text, ms_text, size_text, three_digits

Section = Callable[[EvaluationReport], str]

# (anchor, its name in the contents, what draws it); a section without data draws nothing and is not listed.
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("speed", "Speed and size", speed_section),
    ("split", "Split", split_section),
    ("information", "Where to cut", information_section),
    ("layers", "Layer by layer", layers_section),
    ("candidates", "Alternatives", candidates_section),
    ("samples", "Samples", samples_section),
    ("roofline", "Roofline", roofline_section),
    ("parity", "Proof", parity_section),
    ("provenance", "How it was made", provenance_section),
)


def render(report: EvaluationReport) -> str:
    """The page. Everything that comes from a model, a file or a user is escaped."""
    drawn = [(anchor, name, content) for anchor, name, draw in SECTIONS if (content := draw(report))]
    title = report.title or report.bundle
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in drawn)
    sections = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(name)}</h2>{content}'
        "</section>"
        for anchor, name, content in drawn
    )
    device = report.device_title or report.device
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(title)} for {escape(device)}</title>
<style>{CSS}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<p class="eyebrow">{escape(device)}</p>
<h1>{escape(title)}</h1>
<p class="lead">{_verdict(report)}</p>
<dl class="tiles">{"".join(_tiles(report))}</dl>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main id="main">{sections}</main>
<footer>{_footer(report)}</footer>
</body>
</html>
"""


def _verdict(report: EvaluationReport) -> str:
    """What was shipped and how good it is, in a sentence or two."""
    kind = " ".join(part for part in (report.precision, report.format) if part) or "The artifact"
    pieces = [f"<strong>{escape(kind)}</strong>"]
    if report.quality is not None:
        quality = report.quality
        value = f"<strong>{escape(measure_text(quality.measure, quality.value, quality.samples))}</strong>"
        samples = f"{quality.samples:,} {'held-out' if quality.held_out else 'calibration'} samples"
        reference = escape(quality.reference)
        close = f"keeps its error {value} below the signal of" if math.isfinite(quality.value) else "equals"
        pieces.append(
            {
                "top1_agreement": f"gives the same answer as the {reference} on {value} of {samples}",
                "accuracy": f"is right on {value} of {samples}",
                "cosine": f"stays at a cosine of {value} to the {reference} over {samples}",
                "sqnr_db": f"{close} the {reference} over {samples}",
            }[quality.measure]
        )
    else:
        pieces.append(f"for {escape(report.device_title or report.device)}")
    sentence = " ".join(pieces) + "."
    for change in report.changes:
        if change.name in PRUNING:
            sentence += f" {PRUNING[change.name].capitalize()}: {escape(change.detail)}."
    latency = report.latency_ms
    if latency is not None and latency.host is not None and latency.whole_host is not None:
        gain = latency.whole_host / latency.host
        sentence += f" Here it has {gain:.2f}{TIMES} the speed of the whole model in {escape(report.precision)}."
    if report.fallbacks:
        count = len(report.fallbacks)
        sentence += f" {count} {'layer was' if count == 1 else 'layers were'} kept at a higher precision to hold it."
    return sentence


def _tiles(report: EvaluationReport) -> list[str]:
    tiles = []
    if report.quality is not None:
        quality = report.quality
        detail = f"{quality.samples:,} samples"
        if quality.low is not None and quality.high is not None:
            low, high = (measure_text(quality.measure, end, quality.samples) for end in (quality.low, quality.high))
            detail = f"95 % interval {low} to {high}"
        tiles.append(
            _tile(MEASURES[quality.measure], measure_text(quality.measure, quality.value, quality.samples), detail)
        )
    latency = report.latency_ms
    if latency is not None:
        own = next((entry for entry in latency.predicted if entry.device == report.device), None)
        if own is not None:
            detail = f"predicted, {ms_text(own.low)} to {ms_text(own.high)}"
            tiles.append(_tile(f"Latency on {report.device_title or report.device}", ms_text(own.p50), detail))
        if latency.host is not None:
            speed = f", {latency.speedup:.2f}{TIMES} as fast as float" if latency.speedup is not None else ""
            threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
            tiles.append(_tile("Latency here", ms_text(latency.host), f"measured, {threads}{speed}"))
    if report.memory is not None:
        small = _beside_float(report.compression_ratio)
        tiles.append(_tile("Size", size_text(report.memory.artifact_bytes), small))
        if report.memory.peak_activation_bytes:
            detail = "largest set of live tensors"
            tiles.append(_tile("Working memory", size_text(report.memory.peak_activation_bytes), detail))
    if report.energy is not None:
        detail = "estimated, whole board" if report.energy.estimated else "measured, whole board"
        tiles.append(_tile("Energy", f"{three_digits(report.energy.energy_mj)} mJ", detail))
    return tiles


def _beside_float(ratio: float | None) -> str:
    if not ratio:
        return "on disk"
    return f"{ratio:.1f}{TIMES} smaller than float" if ratio >= 1 else f"{1 / ratio:.1f}{TIMES} the size of float"


def _tile(name: str, value: str, detail: str) -> str:
    number, _, unit = value.rpartition(" ")
    if not number:
        number, unit = value, ""
    small = f"<small>{escape(unit)}</small>" if unit else ""
    return (
        f'<div class="tile"><dt>{escape(name)}</dt><dd class="value">{escape(number)}{small}</dd>'
        f'<dd class="detail">{escape(detail)}</dd></div>'
    )


def _footer(report: EvaluationReport) -> str:
    edgekit = report.versions.get("edgekit", "")
    return escape(f"Written by edgekit {edgekit}. The same numbers are in report.json.".replace("  ", " "))
