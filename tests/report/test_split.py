from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from pydantic import ValidationError

from edgekit.report.html import render
from edgekit.report.model import EvaluationReport, InformationPoint, SplitRow
from edgekit.report.scatter import Dot, Series, log_ticks, scatter_plot, ticks
from edgekit.report.split import cheapest, information_section, split_section


def _row(variant: str, rate: int, size: float, drop: float, agreement: float | None) -> SplitRow:
    return SplitRow(
        variant=variant,
        codec="cut-5",
        rate=rate,
        bytes_mean=size,
        bytes_p95=size * 1.1,
        drop=drop,
        agreement=agreement,
    )


def _point(cut: str, rate: int, bits: float, i_ty: float) -> InformationPoint:
    return InformationPoint(cut=cut, rate=rate, bits_sent=bits, i_xt=i_ty + 1, i_ty=i_ty)


ROWS = (
    _row("split", 0, 1200, 0.1, 0.99),
    _row("split", 1, 300, 0.6, 0.95),
    _row("split", 2, 40, 9.0, 0.81),
    _row("tiers", 0, 900, 0.2, 0.98),
)
POINTS = (_point("blocks.2", 0, 9000, 3.0), _point("blocks.5", 0, 4000, 2.95), _point("blocks.5", 1, 500, 1.1))


def test_both_sections_are_absent_when_empty_and_present_in_the_page():
    page = render(EvaluationReport(bundle="a", device="d"))
    assert 'id="split"' not in page
    assert 'id="information"' not in page
    page = render(EvaluationReport(bundle="a", device="d", split=ROWS, information=POINTS))
    assert '<section id="split"' in page
    assert '<section id="information"' in page
    assert '<a href="#information">Where to cut</a>' in page


def test_the_sentence_names_the_cut_where_a_bottleneck_costs_least():
    assert cheapest(POINTS).cut == "blocks.5"
    assert cheapest(POINTS, share=0.99).cut == "blocks.2"
    section = information_section(EvaluationReport(bundle="a", device="d", information=POINTS))
    assert "A bottleneck costs least at blocks.5: 4,000 bits keep 2.95 of the 3.00 bits that any cut keeps." in section
    nothing = EvaluationReport(bundle="a", device="d", information=(_point("x", 0, 10, 0.0),))
    assert "No cut lets anything" in information_section(nothing)


def test_the_split_section_says_the_least_bytes_within_a_point_and_lists_every_rate():
    section = split_section(EvaluationReport(bundle="a", device="d", split=ROWS))
    assert "split sends the least: 300 B at rate 1." in section
    for piece in ("1.20 kB", "99.0 %", "9.00", "330 B"):
        assert piece in section
    assert section.count("<circle") == len(ROWS)
    assert "same first answer" in section


def test_models_that_do_not_classify_are_drawn_by_points_lost():
    rows = (_row("split", 0, 900, 0.3, None), _row("split", 1, 80, 4.0, None))
    section = split_section(EvaluationReport(bundle="a", device="d", split=rows))
    assert "points lost</text>" in section
    assert "same first answer" not in section


def _dots(plot: str) -> list[tuple[float, float]]:
    tree = ElementTree.fromstring(plot)
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in tree.iter() if dot.tag == "circle"]


def test_dots_lie_where_their_numbers_say():
    dots = tuple(Dot(x, y, "") for x, y in ((10, 0.0), (100, 1.0), (1000, 2.0)))
    first, second, third = _dots(scatter_plot([Series("s", "k1", dots)], "T", "x", "y"))
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.2)
    assert first[1] > second[1] > third[1]


@pytest.mark.parametrize("values", [((0.0, 0.0),), ((0.5, 3.0), (0.5, 3.0)), ((1.0, -9.0), (1e9, 1e6)), ((7.0, 99.9),)])
def test_extremes_stay_inside_the_frame(values):
    dots = _dots(scatter_plot([Series("s", "k1", tuple(Dot(x, y, "") for x, y in values))], "T", "x", "y"))
    assert len(dots) == len(values)
    assert all(0 <= x <= 960 and 0 <= y <= 360 for x, y in dots)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 2.7), (81.0, 99.0), (5.0, 5.0), (-3.0, 1e5), (0.0, 0.0)])
def test_ticks_are_few_even_and_enclose_the_values(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 9
    assert values[0] <= low + 1e-9
    assert values[-1] >= high - 1e-9
    steps = [after - before for before, after in pairwise(values)]
    assert max(steps) == pytest.approx(min(steps))


def test_logarithmic_ticks_are_round():
    assert log_ticks(1.0, 2.0) == [10.0, 20.0, 50.0, 100.0]
    assert log_ticks(0.0, 4.0) == [1.0, 10.0, 100.0, 1000.0, 10000.0]


def test_both_survive_json_and_refuse_negative_sizes():
    report = EvaluationReport(bundle="a", device="d", split=ROWS, information=POINTS)
    assert EvaluationReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    with pytest.raises(ValidationError):
        _row("split", 0, -1, 0, None)
    with pytest.raises(ValidationError):
        _point("x", 0, 1, -0.1)


def test_foreign_names_are_escaped():
    evil = "<script>x</script>"
    page = render(
        EvaluationReport(
            bundle="a", device="d", split=(_row(evil, 0, 10, 0, None),), information=(_point(evil, 0, 9, 1),)
        )
    )
    assert "<script" not in page
