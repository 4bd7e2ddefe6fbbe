"""Plots as inline SVG, drawn from numbers alone. Colours come from the page's style sheet (classes k0 to k7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from edgekit.report.model import Layer, Roofline

WIDTH = 960


@dataclass(frozen=True)
class Bar:
    """`low` and `high` draw a whisker. `color` is a class of the style sheet."""

    name: str
    value: float
    text: str
    color: str
    low: float | None = None
    high: float | None = None


def bar_plot(bars: Sequence[Bar], title: str) -> str:
    """Horizontal bars on one linear axis from zero, each with its number in words."""
    width, row, left = 460, 52, 0
    room = width - 118.0
    top = max([bar.high or bar.value for bar in bars] + [1e-12])
    rows = []
    for index, bar in enumerate(bars):
        y = index * row
        length, tip = room * bar.value / top, room * (bar.high or bar.value) / top
        rows.append(f'<text class="name" x="{left}" y="{y + 14}">{escape(bar.name)}</text>')
        rows.append(
            f'<rect class="fill {bar.color}" x="{left}" y="{y + 21}" width="{max(length, 1.5):.1f}" height="16" '
            f'rx="4"/>'
        )
        if bar.low is not None and bar.high is not None:
            rows.append(_whisker(left + room * bar.low / top, left + tip, y + 29))
        rows.append(
            f'<text class="number" x="{left + max(length, tip) + 9:.1f}" y="{y + 33.5}">{escape(bar.text)}</text>'
        )
    words = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
    return svg(width, row * len(bars) - 8, title, words, rows)


def _whisker(start: float, end: float, y: float) -> str:
    line = f"M{start:.1f} {y - 5}v10M{start:.1f} {y}H{end:.1f}M{end:.1f} {y - 5}v10"
    return f'<path class="whisker" fill="none" d="{line}"/>'


def layer_plot(layers: Sequence[Layer], colors: Mapping[str, str], title: str) -> str:
    """SQNR (dB) of each layer, in the order of the network; `colors`: precision -> class."""
    height, left, right, top, bottom = 300, 46, 12, 14, 30
    finite = [layer.sqnr_db for layer in layers if math.isfinite(layer.sqnr_db)] or [0.0]
    low = min(0.0, math.floor(min(finite) / 10) * 10)
    high = max(low + 20.0, math.ceil((max(finite) + 1) / 10) * 10)
    step = 10 if high - low <= 80 else 20

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (min(max(value, low), high) - low) / (high - low))

    def x(index: int) -> float:
        return left + (WIDTH - left - right) * (index + 0.5) / len(layers)

    rows = [
        f'<path class="grid" d="M{left} {y(tick):.1f}H{WIDTH - right}"/>'
        f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        for tick in range(int(low), int(high) + 1, step)
    ]
    radius = max(2.5, min(6.0, (WIDTH - left - right) / len(layers) / 2.6))
    for index, layer in enumerate(layers):
        color = colors.get(layer.precision, "k7")
        words = f"{layer.name}: {decibels(layer.sqnr_db)}, {layer.precision}"
        rows.append(
            f'<g class="{color}"><title>{escape(words)}</title>'
            f'<path class="stroke" stroke-opacity=".35" d="M{x(index):.1f} {y(low):.1f}V{y(layer.sqnr_db):.1f}"/>'
            f'<circle class="dot" cx="{x(index):.1f}" cy="{y(layer.sqnr_db):.1f}" r="{radius:.1f}"/></g>'
        )
    rows.append(f'<text x="{left}" y="{height - 6}">first layer</text>')
    rows.append(f'<text x="{WIDTH - right}" y="{height - 6}" text-anchor="end">last layer</text>')
    words = f"{len(layers)} layers, lowest {decibels(min(finite))}, highest {decibels(max(finite))}"
    return svg(WIDTH, height, title, words, rows)


def roofline_plot(roofline: Roofline, colors: Mapping[str, str], title: str) -> str:
    """Both axes logarithmic: FLOP per byte against GFLOP/s. A dot's area is its share of the time.

    `colors`: kind of segment -> class.
    """
    height, left, right, top, bottom = 420, 62, 16, 16, 46
    rates = [point.gflops for point in roofline.points if point.gflops > 0] + list(roofline.peaks_gflops.values())
    reach = [point.flop_per_byte for point in roofline.points if point.flop_per_byte > 0]
    ridges = [peak / roofline.bandwidth_gbps for peak in roofline.peaks_gflops.values()]
    x_low, x_high = _decades([*reach, *ridges, 1.0])
    y_low, y_high = _decades([*rates, roofline.bandwidth_gbps])

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (math.log10(value) - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (math.log10(value) - y_low) / (y_high - y_low)

    rows = _log_grid(x, y, (x_low, x_high), (y_low, y_high), height - bottom, left, top, right)
    for precision, peak in sorted(roofline.peaks_gflops.items(), key=lambda item: -item[1]):
        ridge = peak / roofline.bandwidth_gbps
        foot = max(10.0**x_low, 10.0**y_low / roofline.bandwidth_gbps)
        rows.append(
            f'<path fill="none" stroke="var(--ink)" stroke-width="1.5" d="M{x(foot):.1f} '
            f'{y(foot * roofline.bandwidth_gbps):.1f}L{x(ridge):.1f} {y(peak):.1f}H{WIDTH - right}"/>'
            f'<text class="name" x="{WIDTH - right}" y="{y(peak) - 7:.1f}" text-anchor="end">'
            f"{escape(precision)} peak {peak:,.0f} GFLOP/s</text>"
        )
    total = sum(point.milliseconds for point in roofline.points) or 1.0
    for point in sorted(roofline.points, key=lambda point: -point.milliseconds):
        if point.flop_per_byte > 0 and point.gflops > 0:
            radius = max(3.0, 34 * math.sqrt(point.milliseconds / total))
            words = (
                f"{point.name} ({point.kind}, {point.precision}): {point.flop_per_byte:.1f} FLOP/byte, "
                f"{point.gflops:.1f} GFLOP/s, {point.milliseconds:.3f} ms"
            )
            rows.append(
                f'<circle class="dot {colors.get(point.kind, "k7")}" cx="{x(point.flop_per_byte):.1f}" '
                f'cy="{y(point.gflops):.1f}" r="{radius:.1f}"><title>{escape(words)}</title></circle>'
            )
    words = f"{len(roofline.points)} segments under {roofline.bandwidth_gbps:g} GB/s"
    return svg(WIDTH, height, title, words, rows)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten that enclose `values` with a little room, as exponents."""
    low, high = math.log10(min(values)), math.log10(max(values))
    return math.floor(low - 0.05), max(math.floor(low - 0.05) + 1, math.ceil(high + 0.15))


def _log_grid(
    x: Callable[[float], float],
    y: Callable[[float], float],
    across: tuple[int, int],
    up: tuple[int, int],
    floor: float,
    left: float,
    top: float,
    right: float,
) -> list[str]:
    rows = []
    for power in range(across[0], across[1] + 1):
        at = x(10.0**power)
        rows.append(f'<path class="grid" d="M{at:.1f} {top}V{floor}"/>')
        rows.append(f'<text x="{at:.1f}" y="{floor + 19}" text-anchor="middle">{_power(power)}</text>')
    for power in range(up[0], up[1] + 1):
        at = y(10.0**power)
        rows.append(f'<path class="grid" d="M{left} {at:.1f}H{WIDTH - right}"/>')
        rows.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{_power(power)}</text>')
    middle = (left + WIDTH - right) / 2
    rows.append(f'<text x="{middle:.0f}" y="{floor + 40}" text-anchor="middle">FLOP per byte moved</text>')
    rows.append(
        f'<text transform="translate(13 {(top + floor) / 2:.0f}) rotate(-90)" text-anchor="middle">GFLOP/s</text>'
    )
    return rows


def _power(power: int) -> str:
    return f"{10.0**power:,.0f}" if power >= 0 else f"{10.0**power:.{-power}f}"


def decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else ("exact" if value > 0 else "no signal")


def svg(width: int, height: float, title: str, words: str, rows: Sequence[str]) -> str:
    """A picture with `title` and `words` for who hears it; `rows` are escaped already."""
    return (
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(title)}. {escape(words)}">'
        f"{''.join(rows)}</svg>"
    )
