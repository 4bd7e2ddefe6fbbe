"""The latencies of a comparison as an SVG file: a panel a trace, a bar a policy, a whisker to the 95th percentile."""

from __future__ import annotations

from html import escape

from edgekit.planning.comparison import Comparison, Row

WIDTH, LABEL, VALUE, ROW, GAP, TITLE = 760, 120, 260, 22, 30, 26
STYLE = """
svg { background: #ffffff; font: 13px system-ui, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; }
text { fill: #14181f; } .soft { fill: #565e6c; } .title { font-weight: 650; }
.bar { fill: #a7b0be; } .own { fill: #1d5fd1; } .bound { fill: #0b7f74; } .beyond { fill: #e8ebf0; }
.whisker { stroke: #565e6c; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) {
  svg { background: #0f1217; } text { fill: #e9ecf1; } .soft { fill: #a2abb9; } .whisker { stroke: #a2abb9; }
  .bar { fill: #56606f; } .own { fill: #77a7ff; } .bound { fill: #4fc7b8; } .beyond { fill: #242a33; }
}
"""


def policy_plot(comparison: Comparison) -> str:
    """Bars show the mean; each panel has an axis of its own. Pale bars break the accuracy limit."""
    rows: list[str] = []
    y = 10.0
    for trace, policies in comparison.rows.items():
        rows.append(f'<text class="title" x="10" y="{y + 14:.0f}">{escape(trace)}</text>')
        y += TITLE
        longest = max(max(row.run.percentile_ms(0.95), row.run.mean_ms) for row in policies.values())
        for name, row in policies.items():
            rows += _bar(name, row, y, (WIDTH - LABEL - VALUE) / max(longest, 1e-9))
            y += ROW
        y += GAP - ROW / 2
    words = "mean latency of each policy on each trace, with the 95th percentile"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" role="img" '
        f'aria-label="{words}"><style>{STYLE}</style>{"".join(rows)}</svg>\n'
    )


def _bar(name: str, row: Row, y: float, scale: float) -> list[str]:
    kind = {"edgekit": "own", "oracle": "bound"}.get(name, "bar") if row.admissible else "beyond"
    mean, high = scale * row.run.mean_ms, scale * row.run.percentile_ms(0.95)
    text = f"{row.run.mean_ms:.1f} ms, p95 {row.run.percentile_ms(0.95):.1f}, regret {100 * row.regret:.1f} %"
    middle = y + 8
    return [
        f'<text class="soft" x="{LABEL - 8}" y="{y + 13:.0f}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{LABEL}" y="{y:.0f}" width="{max(mean, 1):.1f}" height="16" rx="3"/>',
        f'<path class="whisker" d="M{LABEL + min(mean, high):.1f} {middle:.0f}H{LABEL + max(mean, high):.1f}'
        f'M{LABEL + high:.1f} {middle - 4:.0f}v8"/>',
        f'<text x="{LABEL + max(mean, high) + 8:.1f}" y="{y + 13:.0f}">{escape(text)}</text>',
    ]
