"""Numbers in words, and pieces of HTML with everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

DASH = "\u2013"
TIMES = "\u00d7"

MEASURES = {
    "top1_agreement": "Top-1 agreement",
    "accuracy": "Top-1 accuracy",
    "cosine": "Cosine similarity",
    "sqnr_db": "Signal to noise",
}


# Passes that leave a smaller model, and what a user calls that which went.
PRUNING = {
    "KeepTask": "task",
    "FixLength": "length",
    "PruneWeights": "weights",
    "NarrowBlocks": "widths",
    "CompressByQuery": "tokens",
    "SelectFrames": "frames",
    "PoolTokens": "tokens",
    "PruneHeads": "heads",
    "PruneTokens": "tokens",
}


def size_text(size_bytes: float) -> str:
    """Decimal units, as on a data sheet: "4.87 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{three_digits(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def ms_text(milliseconds: float) -> str:
    if milliseconds >= 10_000:
        return f"{three_digits(milliseconds / 1e3)} s"
    return f"{three_digits(milliseconds)} ms" if milliseconds >= 0.1 else f"{three_digits(milliseconds * 1e3)} µs"


def three_digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def share_text(share: float, samples: int) -> str:
    """Per cent with as many digits as `samples` can tell apart."""
    return f"{100 * share:.{2 if samples >= 1000 and share < 1 else 1}f} %"


def measure_text(measure: str, value: float, samples: int) -> str:
    if measure in ("top1_agreement", "accuracy"):
        return share_text(value, samples)
    return f"{value:.4f}" if measure == "cosine" else ("exact" if value == float("inf") else f"{value:.1f} dB")


def table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], numeric: Sequence[int]) -> str:
    """`rows`: (class, cells); cells are plain text, the first one heads its row. `numeric`: columns set flush right."""

    def side(column: int) -> str:
        return ' class="n"' if column in numeric else ""

    titles = "".join(f'<th scope="col"{side(column)}>{escape(cell)}</th>' for column, cell in enumerate(head))
    width = "narrow" if len(head) <= 3 else "wide"
    lines = []
    for kind, cells in rows:
        inner = [f'<th scope="row"{side(0)}>{escape(cells[0])}</th>']
        for column, cell in enumerate(cells[1:], 1):
            is_text = column == len(cells) - 1 and column not in numeric
            style = ' class="why"' if is_text else side(column)
            inner.append(f"<td{style}>{escape(cell)}</td>")
        row_style = f' class="{kind}"' if kind else ""
        lines.append(f"<tr{row_style}>{''.join(inner)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table class="{width}">'
        f'<caption class="visually-hidden">{escape(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of name and value; values are plain text."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs if value)
    return f'<dl class="facts">{rows}</dl>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """`entries`: (class, name)."""
    return '<ul class="key">' + "".join(f'<li class="{k}"><i></i>{escape(name)}</li>' for k, name in entries) + "</ul>"


def more(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
