"""The landscape of a tuning: the rate that each setting holds, batches across, the rest upwards."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.capacity.demand import Objective
from edgekit.cli.drawing import BOTTOM, HEIGHT, INK, TOP, WIDTH, Box, Dot, Shape, Text
from edgekit.tuning.search import Tuned
from edgekit.tuning.settings import Settings

LEFT, RIGHT = 190, 150
LOW, HIGH, NONE = (0xEE, 0xF3, 0xFB), (0x1D, 0x5F, 0xD1), "#f3e9e4"
Row = tuple[str, int, int, float]


def landscape(found: Tuned, objective: Objective) -> list[Shape]:
    """A cell a setting, darker where it held a higher rate; the figure is its requests a second, from the longest time
    that it was tried. The best is ringed. Settings that were not tried have no cell."""
    trials = found.trials
    batches = sorted({one.max_batch for one in trials})
    rows = sorted({_row(one) for one in trials}, reverse=True)
    width, height = (WIDTH - LEFT - RIGHT) / len(batches), (HEIGHT - TOP - BOTTOM) / len(rows)
    most = max(trial.rate_hz for _, trial in trials.values())
    shapes: list[Shape] = [Text(LEFT, 22, f"requests a second within {objective}", INK)]
    for settings, (seconds, trial) in trials.items():
        x, y = LEFT + width * batches.index(settings.max_batch), TOP + height * rows.index(_row(settings))
        share = trial.rate_hz / most if most else 0.0
        words = f"{settings}: {trial.rate_hz:.4g}/s at {trial.percentile_ms:.3g} ms, tried for {seconds:g} s"
        shapes.append(Box(x + 1, y + 1, width - 2, height - 2, _color(share) if trial.rate_hz else NONE, words))
        color = "#ffffff" if share > 0.6 else INK
        shapes.append(Text(x + width / 2, y + height / 2 + 4, _rate_text(trial.rate_hz), color, "middle"))
        if settings == found.best:
            shapes.append(Dot(x + width / 2, y + height / 2, min(width, height) / 2 - 2, INK, "the best", ring=2.0))
    for index, batch in enumerate(batches):
        shapes.append(Text(LEFT + width * (index + 0.5), HEIGHT - BOTTOM + 18, str(batch), anchor="middle"))
    for index, row in enumerate(rows):
        shapes.append(Text(LEFT - 8, TOP + height * (index + 0.5) + 4, _row_text(row, rows), anchor="end"))
    shapes.append(Text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "rows of a batch, at most", anchor="middle"))
    below = ("ring: the best", "pale red: breaks it")
    return shapes + [Text(WIDTH - RIGHT + 12, TOP + 14 + 18 * line, words) for line, words in enumerate(below)]


def _rate_text(rate_hz: float) -> str:
    return f"{rate_hz:,.0f}" if rate_hz >= 100 else f"{rate_hz:.3g}"


def _row(settings: Settings) -> Row:
    return settings.part, settings.workers, settings.threads, settings.max_delay_ms


def _row_text(row: Row, rows: Sequence[Row]) -> str:
    """What differs among the rows."""
    part, workers, threads, delay = row
    words = [part] if len({one[0] for one in rows}) > 1 else []
    if len({one[1:3] for one in rows}) > 1:
        words.append(f"{workers} x {threads}")
    return ", ".join([*words, f"wait {delay:g} ms"])


def _color(share: float) -> str:
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in zip(LOW, HIGH, strict=True))
