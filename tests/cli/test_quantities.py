from __future__ import annotations

import pytest

from edgekit.cli.output import Output
from edgekit.cli.quantities import read_link
from edgekit.errors import UsageError
from edgekit.planning.link import Link


@pytest.mark.parametrize("text", ["10mbps", "1gbps,1%", " 500KBPS , 2%"])
def test_a_link_without_a_round_trip_says_which_one_is_assumed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_link(Output(), text, "--link").rtt_ms == 0
    said = capsys.readouterr()
    assert said.out == "" and f"--link {text} gives no round-trip time: 0 ms assumed" in said.err


@pytest.mark.parametrize("text", ["10mbps,0ms", "20ms,10mbps", "1gbps, 2s, 1%", "1mbps,300us"])
def test_a_link_with_a_round_trip_says_nothing(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_link(Output(), text, "--link") == Link.parse(text)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet_and_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    read_link(Output(quiet=True), "10mbps", "--link")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="no bandwidth"):
        read_link(Output(), "20ms", "--link")
