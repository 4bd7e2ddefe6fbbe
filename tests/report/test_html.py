from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from edgekit.report.html import render
from edgekit.report.model import EvaluationReport, Layer, Quality, Roofline, RooflinePoint, Sample
from edgekit.report.plots import Bar, bar_plot, layer_plot, roofline_plot
from edgekit.report.text import ms_text, share_text, size_text

VOID = {"meta", "img", "br", "link", "input"}


class _Page(HTMLParser):
    """Checks that elements nest and close, and keeps what the tests ask about."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_well_formed_and_shows_the_numbers(report):
    page = _Page(render(report))
    for piece in ("97.2", "4.18", "4.91", "48.3", "24.6 dB", "not installed", "alone it limits the net", "0123abc"):
        assert piece in page.text
    assert "int8 ONNX gives the same answer as the float model on 97.2 % of 432 held-out samples." in page.text


def test_page_fetches_nothing(report):
    page = render(report)
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "url(" not in page
    for tag, attributes in _Page(page).tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)


def test_page_serves_readers_and_keyboards(report):
    page = _Page(render(report))
    by_tag: dict[str, list[dict[str, str | None]]] = {}
    for tag, attributes in page.tags:
        by_tag.setdefault(tag, []).append(attributes)
    assert by_tag["html"][0]["lang"] == "en"
    assert len(by_tag["h1"]) == 1
    assert all(image["alt"] for image in by_tag["img"])
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in by_tag["svg"])
    assert all("scope" in head for head in by_tag["th"])
    assert len(by_tag["caption"]) == len(by_tag["table"])
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in by_tag["a"]} <= anchors
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_everything_foreign_is_escaped():
    evil = "<script>alert('x')</script>&\""
    page = render(
        EvaluationReport(
            bundle=evil,
            title=evil,
            device=evil,
            format=evil,
            layers=(Layer(name=evil, sqnr_db=1.0, precision=evil),),
            samples=(Sample(name=evil, top=((evil, 0.5),)),),
            seconds={evil: 1.0},
            versions={evil: evil},
            notes=(evil,),
        )
    )
    assert "<script" not in page
    assert evil in _Page(page).text


def test_least_report_renders_without_empty_sections():
    page = _Page(render(EvaluationReport(bundle="a.edgekit", device="pixel-8")))
    assert "a.edgekit" in page.text
    assert "Roofline" not in page.text
    assert "nan" not in page.text


@pytest.mark.parametrize(
    ("measure", "value", "sentence"),
    [
        ("accuracy", 0.9034, "is right on 90.34 % of 10,000 held-out samples."),
        ("cosine", 0.9961, "stays at a cosine of 0.9961 to the float model over 10,000 held-out samples."),
        ("sqnr_db", 31.25, "keeps its error 31.2 dB below the signal of the float model over 10,000 held-out samples."),
        ("sqnr_db", float("inf"), "equals the float model over 10,000 held-out samples."),
    ],
)
def test_verdict_is_a_sentence_for_every_measure(measure, value, sentence):
    quality = Quality(measure=measure, value=value, samples=10_000, reference="float model")
    page = _Page(render(EvaluationReport(bundle="a", device="d", precision="int8", format="onnx", quality=quality)))
    assert f"int8 onnx {sentence}" in page.text


def _numbers(svg: str) -> list[float]:
    tree = ElementTree.fromstring(svg)
    return [
        float(value)
        for element in tree.iter()
        for name, value in element.attrib.items()
        if name in {"x", "y", "cx", "cy", "r", "width", "height"}
    ]


def test_bars_are_in_proportion_and_whiskers_stay_inside():
    svg = bar_plot([Bar("a", 2.0, "2", "k1"), Bar("b", 4.0, "4", "k1", 3.0, 5.0), Bar("c", 0.0, "0", "k1")], "Bars")
    widths = [float(rect.attrib["width"]) for rect in ElementTree.fromstring(svg) if rect.tag == "rect"]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.1)
    assert max(_numbers(svg)) <= 460


@pytest.mark.parametrize("count", [1, 3, 500])
def test_layer_plot_holds_every_layer_inside_its_frame(count):
    layers = [
        Layer(name=f"layer {i}", sqnr_db=(-5.0, 40.0, float("inf"))[i % 3], precision="int8") for i in range(count)
    ]
    tree = ElementTree.fromstring(layer_plot(layers, {"int8": "k1"}, "Layers"))
    dots = [element for element in tree.iter() if element.tag == "circle"]
    assert len(dots) == count
    assert all(0 <= float(dot.attrib["cx"]) <= 960 and 0 <= float(dot.attrib["cy"]) <= 300 for dot in dots)


def test_roofline_dots_lie_where_their_numbers_say():
    points = [
        RooflinePoint(name="a", kind="conv", precision="int8", flop_per_byte=1.0, gflops=5.0, milliseconds=1.0),
        RooflinePoint(name="b", kind="conv", precision="int8", flop_per_byte=10.0, gflops=50.0, milliseconds=1.0),
        RooflinePoint(name="c", kind="conv", precision="int8", flop_per_byte=100.0, gflops=50.0, milliseconds=1.0),
    ]
    roofline = Roofline(device="d", unit="u", bandwidth_gbps=5.0, peaks_gflops={"int8": 600.0}, points=tuple(points))
    tree = ElementTree.fromstring(roofline_plot(roofline, {"conv": "k1"}, "Roofline"))
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in tree.iter() if dot.tag == "circle"]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.2)
    assert dots[0][1] > dots[1][1] == dots[2][1]


def test_numbers_read_like_a_data_sheet():
    assert [size_text(size) for size in (12, 4_912, 4_912_331, 2_210_000_000)] == [
        "12 B",
        "4.91 kB",
        "4.91 MB",
        "2.21 GB",
    ]
    assert [ms_text(ms) for ms in (0.08, 4.18, 31.24, 412.0, 27_000)] == [
        "80.0 \u00b5s",
        "4.18 ms",
        "31.2 ms",
        "412 ms",
        "27.0 s",
    ]
    assert [share_text(0.972, 432), share_text(0.9034, 10_000), share_text(1.0, 10_000)] == [
        "97.2 %",
        "90.34 %",
        "100.0 %",
    ]
