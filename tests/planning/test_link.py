from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.planning.link import Link


@pytest.mark.parametrize(("text", "link"), [
    ("10mbps,20ms", Link(10, 20)),
    ("500kbps, 80ms, 1%", Link(0.5, 80, 0.01)),
    ("1gbps", Link(1000)),
    ("250us,2.5Mbps", Link(2.5, 0.25)),
    (".5mbps,1s", Link(0.5, 1000)),
])  # fmt: skip
def test_a_link_is_read_from_quantities_in_any_order(text: str, link: Link) -> None:
    found = Link.parse(text)
    assert (found.bandwidth_mbps, found.rtt_ms, found.loss) == pytest.approx(
        (link.bandwidth_mbps, link.rtt_ms, link.loss)
    )


@pytest.mark.parametrize("text", ["", "20ms", "fast", "10mbps,20", "10mbps;20ms", "0mbps", "10mbps,100%", "-1mbps",
                                  "10mbps,20ms,30ms", "1mbps,2mbps", "nanmbps"])  # fmt: skip
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="link"):
        Link.parse(text)


@pytest.mark.parametrize("bad", [(math.nan, 0.0, 0.0), (1.0, -1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_impossible_figures_are_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="allowed"):
        Link(*bad)


def test_ten_megabits_carry_a_kilobyte_in_eight_tenths_of_a_millisecond() -> None:
    assert Link(10).transfer_ms(1_000) == pytest.approx(0.8)
    assert Link(10, 20).one_way_ms(1_000) == pytest.approx(10.8)
    assert Link(10, 20, 0.5).one_way_ms(1_000) == pytest.approx(11.6)


@given(st.floats(0.01, 1e4), st.floats(0, 1e3), st.floats(0, 0.9))
def test_what_is_shown_is_read_back(bandwidth: float, rtt_ms: float, loss: float) -> None:
    link = Link(round(bandwidth, 3) or 0.01, round(rtt_ms, 2), round(loss, 2))
    text = str(link).replace(" Mbit/s", "mbps").replace(" ms", "ms").replace(" %", "%")
    if "e" not in text.replace("mbps", ""):
        back = Link.parse(text)
        assert back.bandwidth_mbps == pytest.approx(link.bandwidth_mbps, rel=1e-5)
        assert back.rtt_ms == pytest.approx(link.rtt_ms, rel=1e-5)
        assert back.loss == pytest.approx(link.loss, rel=1e-5)
