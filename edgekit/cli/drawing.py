"""What plots are made of: lines, dots and words on a sheet, written as SVG, HTML or PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from edgekit.bundle.write import check_folder
from edgekit.errors import OutputError, UsageError

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 500, 64, 210, 62, 56
PAPER, INK, SOFT, LINE, BOUND = "#ffffff", "#14181f", "#565e6c", "#e1e5ea", "#0f7b4f"
COLORS = ("#1d5fd1", "#c2570c", "#0b7f74", "#8a3ffc", "#b4235a", "#5d6b1f", "#566274")
Scale = Callable[[float], float]
SUFFIXES = (".svg", ".html", ".png")


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


@dataclass(frozen=True)
class Box:
    """`words` appear under the pointer."""

    x: float
    y: float
    width: float
    height: float
    color: str
    words: str = ""


Shape = Line | Dot | Text | Box


def check_path(path: Path | None, force: bool) -> None:
    """Raises UsageError for a suffix that is not drawn, OutputError for a file that stands there or a folder that takes
    none; call it before long work."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: unknown suffix {path.suffix!r}", hint=f"one of {', '.join(SUFFIXES)}")
    if path.exists() and not force:
        raise OutputError(f"{path} exists", hint="--force replaces it, --plot names another")
    check_folder(path)


def draw(path: Path, shapes: Sequence[Shape], title: str) -> None:
    """As the suffix says. Raises OutputError."""
    kind = path.suffix.lower()
    try:
        if kind == ".png":
            path.write_bytes(to_png(shapes))
        else:
            path.write_text((to_svg if kind == ".svg" else to_html)(shapes, title), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose a writable path") from error


def sheet(
    x_ticks: Sequence[float], y_ticks: Sequence[float], title: str, across: str
) -> tuple[Scale, Scale, list[Shape]]:
    """(where a value lies across, where upwards, the grid with its numbers); upwards are points lost."""
    x, y = axis(x_ticks, LEFT, WIDTH - RIGHT), axis(y_ticks, HEIGHT - BOTTOM, TOP)
    shapes: list[Shape] = [Text(LEFT, 22, title, INK)]
    for tick in x_ticks:
        shapes.append(Line(x(tick), TOP, x(tick), HEIGHT - BOTTOM, LINE))
        shapes.append(Text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", anchor="middle"))
    for tick in y_ticks:
        shapes.append(Line(LEFT, y(tick), WIDTH - RIGHT, y(tick), LINE))
        shapes.append(Text(LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
    shapes.append(Text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, across, anchor="middle"))
    shapes.append(Text(8, TOP - 16, "points lost"))
    return x, y, shapes


def limit_lines(x: Scale, y: Scale, latency_ms: float | None, drop: float | None) -> list[Shape]:
    """Dashed: what may not be passed, across and upwards."""
    shapes: list[Shape] = []
    if latency_ms is not None:
        shapes.append(Line(x(latency_ms), TOP, x(latency_ms), HEIGHT - BOTTOM, BOUND, True))
    if drop is not None:
        shapes.append(Line(LEFT, y(drop), WIDTH - RIGHT, y(drop), BOUND, True))
    return shapes


def legend(rows: Sequence[tuple[str, str]], remarks: Sequence[str] = ()) -> list[Shape]:
    """Beside the sheet: a dot for each (name, color), and below them what else the picture means."""
    shapes: list[Shape] = []
    for row, (name, color) in enumerate(rows):
        shapes.append(Dot(WIDTH - RIGHT + 20, TOP + 10 + 22 * row, 5, color))
        shapes.append(Text(WIDTH - RIGHT + 32, TOP + 14 + 22 * row, name, INK))
    below = TOP + 22 * len(rows) + 26
    return shapes + [Text(WIDTH - RIGHT + 15, below + 18 * line, words) for line, words in enumerate(remarks)]


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
        elif isinstance(shape, Box):
            title = f"<title>{escape(shape.words)}</title>" if shape.words else ""
            rows.append(
                f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" '
                f'fill="{shape.color}">{title}</rect>'
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
        elif isinstance(shape, Box):
            corner = [zoom * (shape.x + shape.width), zoom * (shape.y + shape.height)]
            draw.rectangle([zoom * shape.x, zoom * shape.y, *corner], shape.color)
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


def axis(ticks: Sequence[float], start: float, end: float) -> Scale:
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (end - start) * (value - low) / (high - low)


def ticks(values: Sequence[float], limit: float | None, *, zero: bool) -> list[float]:
    """Round numbers that enclose the values, four to nine of them."""
    shown = [*values, *([limit] if limit is not None else []), *([0.0] if zero else [])] or [0.0]
    low, high = min(shown), max(shown)
    span = max(high - low, 1e-3 * abs(high), 1e-6)
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]
