"""The sections of a split model: what each rate costs and keeps, and where a bottleneck costs least."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgekit.report.model import EvaluationReport, InformationPoint, SplitRow
from edgekit.report.scatter import Dot, Series, scatter_plot
from edgekit.report.text import DASH, legend, more, size_text, table

WIDE = '<figure class="plot" tabindex="0">'
NEARLY_ALL = 0.95


def split_section(report: EvaluationReport) -> str:
    """Rate against agreement (against points lost, where the model is no classifier), a line for each variant."""
    if not report.split:
        return ""
    by_agreement = all(row.agreement is not None for row in report.split)
    groups: dict[str, list[SplitRow]] = {}
    for row in report.split:
        groups.setdefault(f"{row.variant}, {row.codec}", []).append(row)
    series = [
        Series(name, f"k{min(index, 7)}", tuple(_split_dot(name, row, by_agreement) for row in rows))
        for index, (name, rows) in enumerate(groups.items(), 1)
    ]
    label = "same first answer as the float model, %" if by_agreement else "points lost"
    title = "Bytes against agreement" if by_agreement else "Bytes against points lost"
    plot = scatter_plot(series, title, "bytes on the wire for a sample (mean)", label)
    rows = [("", _split_cells(row)) for row in report.split]
    head = ("Variant", "Codec", "Rate", "Bytes, mean", "Bytes, p95", "Points lost", "Agreement")
    return (
        f'<p class="note">{escape(_split_words(report.split))}</p>'
        f"{WIDE}{plot}</figure>"
        f"{legend([(one.color, one.name) for one in series])}"
        f"{more('All rates', table('Rates', head, rows, (2, 3, 4, 5, 6)))}"
    )


def _split_dot(name: str, row: SplitRow, by_agreement: bool) -> Dot:
    if by_agreement and row.agreement is not None:
        value, said = 100 * row.agreement, f"{100 * row.agreement:.1f} %"
    else:
        value, said = row.drop, f"{row.drop:.2f} points lost"
    return Dot(row.bytes_mean, value, f"{name}, rate {row.rate}: {size_text(row.bytes_mean)}, {said}")


def _split_cells(row: SplitRow) -> tuple[str, ...]:
    return (
        row.variant,
        row.codec,
        str(row.rate),
        size_text(row.bytes_mean),
        size_text(row.bytes_p95),
        f"{row.drop:.2f}",
        DASH if row.agreement is None else f"{100 * row.agreement:.1f} %",
    )


def _split_words(rows: Sequence[SplitRow]) -> str:
    words = (
        "What crosses the link for one sample, frame included, and what is lost by it. One artifact serves every rate: "
        "the sender picks one as the link allows."
    )
    near = [row for row in rows if row.drop <= 1.0]
    if near:
        least = min(near, key=lambda row: row.bytes_mean)
        words += (
            f" Within one point of the float model, {least.variant} sends the least: {size_text(least.bytes_mean)} "
            f"at rate {least.rate}."
        )
    return words


def information_section(report: EvaluationReport) -> str:
    """The information kept about the answer against the bits sent, a line for each cut."""
    points = report.information
    if not points:
        return ""
    cuts = list(dict.fromkeys(point.cut for point in points))
    series = [
        Series(cut, f"k{min(index, 7)}", tuple(_information_dot(point) for point in points if point.cut == cut))
        for index, cut in enumerate(cuts, 1)
    ]
    plot = scatter_plot(series, "Information kept", "bits sent for a sample", "bits known of the answer")
    rows = [
        ("", (point.cut, str(point.rate), f"{point.bits_sent:,.0f}", f"{point.i_xt:.2f}", f"{point.i_ty:.2f}"))
        for point in points
    ]
    head = ("Cut", "Rate", "Bits sent", "Known of the input", "Known of the answer")
    return (
        '<p class="note">Mutual information between what arrives and the answer, estimated from samples: it shows '
        "where to cut, not a guarantee. Up and to the left is better.</p>"
        f"<p><strong>{escape(_cheapest_words(points))}</strong></p>"
        f"{WIDE}{plot}</figure>"
        f"{legend([(one.color, one.name) for one in series])}"
        f"{more('All points', table('Information', head, rows, (1, 2, 3, 4)))}"
    )


def cheapest(points: Sequence[InformationPoint], share: float = NEARLY_ALL) -> InformationPoint:
    """The point of the fewest bits among those that know at least `share` of the most that any knows of the answer."""
    enough = share * max(point.i_ty for point in points)
    return min((point for point in points if point.i_ty >= enough), key=lambda point: point.bits_sent)


def _cheapest_words(points: Sequence[InformationPoint]) -> str:
    best = cheapest(points)
    most = max(point.i_ty for point in points)
    if most <= 0:
        return "No cut lets anything of the answer through at these rates."
    return (
        f"A bottleneck costs least at {best.cut}: {best.bits_sent:,.0f} bits keep {best.i_ty:.2f} of the "
        f"{most:.2f} bits that any cut keeps."
    )


def _information_dot(point: InformationPoint) -> Dot:
    words = f"{point.cut}, rate {point.rate}: {point.bits_sent:,.0f} bits sent, {point.i_ty:.2f} bits of the answer"
    return Dot(point.bits_sent, point.i_ty, words)
