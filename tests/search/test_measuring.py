"""In which order knobs are measured, and that the time is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.search import measuring
from edgekit.search.measuring import measure
from edgekit.search.space import Family

PLAIN = (Family("onnx", "fp32"), Family("onnx", "int8"))
MERGING = (Family("onnx", "fp32", "merge"), Family("onnx", "int8", "merge"))


class Bench:
    """Each table takes one second."""

    def __init__(self, missing: tuple[Family, ...] = ()) -> None:
        self.now, self.asked, self.missing = 0.0, [], missing
        self.time_left: Callable[[], bool] = lambda: True

    def table(self, family: Family, knobs: Any, *, with_widths: bool) -> Any:
        assert knobs is self
        self.now += 1
        self.asked.append((family, with_widths))
        return None if family in self.missing else (family, with_widths)

    def clock(self) -> float:
        return self.now


def run(bench: Bench, monkeypatch: pytest.MonkeyPatch, deadline: float, **options: bool) -> dict[Family, Any]:
    monkeypatch.setattr(measuring, "tables_of", bench.table)
    return measure([*MERGING, *PLAIN], bench, deadline, bench.clock, **options)  # type: ignore[arg-type]


def test_precisions_come_before_tokens_and_widths_last(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    found = run(bench, monkeypatch, 100)
    without, with_widths = ([family for family, widths in bench.asked if widths is kind] for kind in (False, True))
    assert without == [*PLAIN, *MERGING] == with_widths
    assert [widths for _, widths in bench.asked] == [False] * 4 + [True] * 4
    assert set(found.values()) == {(family, True) for family in (*PLAIN, *MERGING)}


def test_where_the_size_counts_widths_come_before_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    run(bench, monkeypatch, 100, for_size=True)
    assert bench.asked == [
        *((family, False) for family in PLAIN),
        *((family, True) for family in (*PLAIN, *MERGING)),
    ]


def test_after_the_deadline_nothing_is_begun_and_what_is_known_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    found = run(bench, monkeypatch, 5)
    assert len(bench.asked) == 5
    assert found[PLAIN[0]] == (PLAIN[0], True)
    assert found[MERGING[1]] == (MERGING[1], False)
    assert not bench.time_left()


def test_one_family_is_measured_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(missing=(PLAIN[0],))
    assert run(bench, monkeypatch, 0) == {PLAIN[1]: (PLAIN[1], False)}
