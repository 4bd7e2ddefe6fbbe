"""Plans as a picture: latency across, points lost upwards; drawn once, written as SVG, HTML or PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

from edgekit.planning.plan import Plan, PlanLimits

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 500, 64, 210, 62, 56
PAPER, INK, SOFT, LINE, BOUND = "#ffffff", "#14181f", "#565e6c", "#e1e5ea", "#0f7b4f"
COLORS = ("#1d5fd1", "#c2570c", "#0b7f74", "#8a3ffc", "#b4235a", "#5d6b1f", "#566274")


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """`ring`: drawn as a circle of this width instead of a disc. `words` appear under the pointer."""

    x: float
    y: float
    radius: float
    color: str
    words: str = ""
    ring: float = 0.0


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    color: str = SOFT
    anchor: str = "start"


Shape = Line | Dot | Text


def front_shapes(front: Sequence[Plan], chosen: Plan, limits: PlanLimits, title: str) -> list[Shape]:
    """A dot a plan, its area after the bytes sent, a colour a variant; the chosen one ringed, limits dashed. Plans far
    beyond the limit on points are told, not drawn: they would squeeze the rest."""
    ceiling = math.inf if limits.drop is None else max(5 * limits.drop, limits.drop + 2)
    beyond = sum(plan.drop > ceiling for plan in front)
    front = [plan for plan in front if plan.drop <= ceiling]
    x_ticks = _ticks([plan.latency_ms for plan in front], limits.latency_ms, zero=True)
    y_ticks = _ticks([plan.drop for plan in front], limits.drop, zero=False)
    x = _axis(x_ticks, LEFT, WIDTH - RIGHT)
    y = _axis(y_ticks, HEIGHT - BOTTOM, TOP)
    shapes: list[Shape] = [Text(LEFT, 22, title, INK)]
    for tick in x_ticks:
        shapes.append(Line(x(tick), TOP, x(tick), HEIGHT - BOTTOM, LINE))
        shapes.append(Text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", anchor="middle"))
    for tick in y_ticks:
        shapes.append(Line(LEFT, y(tick), WIDTH - RIGHT, y(tick), LINE))
        shapes.append(Text(LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
    shapes.append(Text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "expected latency, ms", anchor="middle"))
    shapes.append(Text(8, TOP - 16, "points lost"))
    if beyond:
        words = f"not drawn: {beyond} that lose over {ceiling:g} points"
        shapes.append(Text(WIDTH - RIGHT, TOP - 16, words, anchor="end"))
    if limits.latency_ms is not None:
        shapes.append(Line(x(limits.latency_ms), TOP, x(limits.latency_ms), HEIGHT - BOTTOM, BOUND, True))
    if limits.drop is not None:
        shapes.append(Line(LEFT, y(limits.drop), WIDTH - RIGHT, y(limits.drop), BOUND, True))
    most = max((plan.bytes_sent for plan in front), default=0.0) or 1.0
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(plan.variant for plan in front))}
    for plan in front:
        radius = 4 + 8 * math.sqrt(plan.bytes_sent / most)
        words = f"{plan.variant} {list(plan.rates)}: {plan.latency_ms:.1f} ms, {plan.energy_mj:.1f} mJ, "
        words += f"{plan.bytes_sent:.0f} bytes, {plan.drop:.2f} points"
        shapes.append(Dot(x(plan.latency_ms), y(plan.drop), radius, colors[plan.variant], words))
        if plan == chosen:
            shapes.append(Dot(x(plan.latency_ms), y(plan.drop), radius + 4, INK, "chosen", ring=2.0))
    for row, (name, color) in enumerate(colors.items()):
        shapes.append(Dot(WIDTH - RIGHT + 20, TOP + 10 + 22 * row, 5, color))
        shapes.append(Text(WIDTH - RIGHT + 32, TOP + 14 + 22 * row, name, INK))
    shapes.append(Text(WIDTH - RIGHT + 15, TOP + 22 * len(colors) + 26, "area: bytes sent; ring: chosen"))
    return shapes


def to_svg(shapes: Sequence[Shape], words: str) -> str:
    rows = []
    for shape in shapes:
        if isinstance(shape, Line):
            dash = ' stroke-dasharray="6 4"' if shape.dashed else ""
            rows.append(
                f'<path d="M{shape.x1:.1f} {shape.y1:.1f}L{shape.x2:.1f} {shape.y2:.1f}" stroke="{shape.color}"{dash}/>'
            )
        elif isinstance(shape, Dot):
            paint = f'fill="none" stroke="{shape.color}" stroke-width="{shape.ring:g}"'
            paint = paint if shape.ring else f'fill="{shape.color}" fill-opacity=".75"'
            title = f"<title>{escape(shape.words)}</title>" if shape.words else ""
            rows.append(
                f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:.1f}" {paint}>{title}</circle>'
            )
        else:
            rows.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" fill="{shape.color}" text-anchor="{shape.anchor}">'
                f"{escape(shape.text)}</text>"
            )
    style = f"svg {{ background: {PAPER}; font: 13px system-ui, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif; }}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(words)}"><style>{style}</style>{"".join(rows)}</svg>\n'
    )


def to_html(shapes: Sequence[Shape], words: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(words)}</title>'
        f'<body style="margin:2rem;background:{PAPER}">{to_svg(shapes, words)}</body></html>\n'
    )


def to_png(shapes: Sequence[Shape]) -> bytes:
    """At twice the size, for dense screens."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = 2
    image = Image.new("RGB", (zoom * WIDTH, zoom * HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13 * zoom)
    for shape in shapes:
        if isinstance(shape, Line):
            for x1, y1, x2, y2 in _dashes(shape) if shape.dashed else [(shape.x1, shape.y1, shape.x2, shape.y2)]:
                draw.line([zoom * x1, zoom * y1, zoom * x2, zoom * y2], shape.color, zoom)
        elif isinstance(shape, Dot):
            box = [zoom * (shape.x - shape.radius), zoom * (shape.y - shape.radius)]
            box += [zoom * (shape.x + shape.radius), zoom * (shape.y + shape.radius)]
            if shape.ring:
                draw.ellipse(box, outline=shape.color, width=round(zoom * shape.ring))
            else:
                draw.ellipse(box, fill=shape.color, outline=PAPER, width=zoom)
        else:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            draw.text((zoom * shape.x, zoom * shape.y), shape.text, shape.color, font, anchor)
    stream = BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _dashes(line: Line) -> list[tuple[float, float, float, float]]:
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    steps = [(start / length, min(start + 6, length) / length) for start in range(0, max(int(length), 1), 10)]
    dx, dy = line.x2 - line.x1, line.y2 - line.y1
    return [(line.x1 + a * dx, line.y1 + a * dy, line.x1 + b * dx, line.y1 + b * dy) for a, b in steps]


def _axis(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _ticks(values: Sequence[float], limit: float | None, *, zero: bool) -> list[float]:
    """Round numbers that enclose the values, four to nine of them."""
    shown = [*values, *([limit] if limit is not None else []), *([0.0] if zero else [])] or [0.0]
    low, high = min(shown), max(shown)
    span = max(high - low, 1e-3 * abs(high), 1e-6)
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]
