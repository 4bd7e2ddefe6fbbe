"""`edgekit search` and `export --limit` at the command line: what is refused at once, the table and the picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from edgekit.cli.drawing import INK, Dot, Line, Shape, to_png, to_svg
from edgekit.cli.output import Output
from edgekit.cli.search_front import search_shapes, show_search
from edgekit.search.limits import SearchLimits
from edgekit.search.outcome import Found, Outcome, Proposal, refusal
from edgekit.search.space import Configuration, Family
from edgekit.search.verify import Verified

Invoke = Callable[..., Result]


def verified(latency_ms: float, drop: float, *, precision: str = "int8", **other: Any) -> Verified:
    configuration = Configuration(Family("onnx", precision), floats=(f"at {latency_ms}",))
    figures = {"latency_ms": latency_ms, "drop": drop, "low": drop - 0.1, "high": drop + 0.1, "error": 1e-4}
    return Verified(configuration, **{**figures, "size_bytes": 1e6, "memory_bytes": 2e6, **other})


FRONT = (verified(1.0, 0.9), verified(2.0, 0.3, expected={"drop": 0.4, "latency_ms": 2.1}), verified(4.0, 0.0))
BEATEN, FAR, FAILED = verified(4.5, 0.5, precision="fp32"), verified(0.5, 60.0), verified(9.0, 0.0, failed="no kernel")
EXPECTED = tuple(
    Proposal(Configuration(Family("onnx", "int8")), {"latency_ms": ms, "drop": drop}, 0.0)
    for ms, drop in ((1.0, 1.0), (2.0, 0.4), (4.0, 0.0))
)
OUTCOME = Outcome(
    chosen=FRONT[1],
    verified=(*FRONT, BEATEN, FAR, FAILED),
    front=FRONT,
    expected=EXPECTED,
    limits=SearchLimits(latency_ms=2.5, drop=0.5),
    seconds=3.0,
    complete=True,
)


def dots(shapes: list[Shape]) -> list[Dot]:
    return [shape for shape in shapes if isinstance(shape, Dot) and shape.words and not shape.ring]


def test_the_picture_shows_what_was_built_and_rings_the_choice() -> None:
    shapes = search_shapes(OUTCOME, "net")
    assert {dot.words.split(":")[0] for dot in dots(shapes)} == {str(one.configuration) for one in (*FRONT, BEATEN)}
    (ring,) = [shape for shape in shapes if isinstance(shape, Dot) and shape.ring]
    chosen = next(dot for dot in dots(shapes) if str(FRONT[1].configuration) in dot.words)
    assert (ring.x, ring.y) == (chosen.x, chosen.y)
    assert len({dot.color for dot in dots(shapes)}) == 2
    drawn = sorted((dot.x, dot.y) for dot in dots(shapes))
    joined = [shape for shape in shapes if isinstance(shape, Line) and shape.color == INK and not shape.dashed]
    assert joined and all(one.x1 < one.x2 and one.y1 < one.y2 for one in joined)  # later and lower: down the page
    assert all((one.x1, one.y1) in drawn and (one.x2, one.y2) in drawn for one in joined)
    dashed = [shape for shape in shapes if isinstance(shape, Line) and shape.dashed]
    assert len(dashed) == 2 + len(EXPECTED) - 1  # two limits, and the expected front between its points


def test_the_picture_can_be_written() -> None:
    shapes = search_shapes(OUTCOME, "net")
    assert to_png(shapes).startswith(b"\x89PNG")
    assert "<svg" in to_svg(shapes, "net")


def test_the_table_sets_expectation_beside_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    show_search(Output(), OUTCOME)
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "chosen" in line)
    assert "0.30" in row
    assert "0.40" in row
    assert "latency" in next(line for line in text.splitlines() if "at 4.0" in line)  # which limit it breaks


def test_the_outcome_tells_how_it_ended() -> None:
    assert "nothing better is expected" in OUTCOME.told()
    assert "0.30 points lost in 2 ms (0.40 in 2.1 expected)" in OUTCOME.told()


@pytest.mark.parametrize("command", ["search", "export"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--limit", "latency=8MB"), "no quantity above zero"),
        (("--limit", "latncy=8ms"), "did you mean"),
        (("--limit", "latency=8ms", "--limit", "latency=9ms"), "second"),
        (("--budget", "soon"), "no time above zero"),
        (("--limit", "latency=8ms", "--plot", "front.bmp"), "unknown suffix"),
    ],
)
def test_what_cannot_be_is_refused_before_torch_loads(
    invoke: Invoke, command: str, options: tuple[str, ...], words: str
) -> None:
    result = invoke(command, "fashion-vit", "--device", "raspberry-pi-5", *options, code=2)
    assert words in result.stderr


def test_an_interrupted_search_says_that_it_goes_on(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.pipeline.export_recipe", interrupt)
    command = ("export", "fashion-vit", "--device", "raspberry-pi-5", "-o", tmp_path / "vit.edgekit")
    assert "goes on with it" in invoke(*command, "--budget", "5s", code=130).stderr
    assert "goes on with it" not in invoke(*command, code=130).stderr


def test_a_plot_without_a_search_is_refused(invoke: Invoke) -> None:
    result = invoke("export", "fashion-vit", "--device", "raspberry-pi-5", "--plot", "front.png", code=2)
    assert "--limit or --budget" in result.stderr


def test_a_recipe_file_is_read_and_options_win_over_it(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('source = "fashion-vit"\ndevice = "raspberry-pi-5"\nlimit = "latency=8ms"\nbudget = "soon"\n')
    assert "'soon'" in invoke("search", file, code=2).stderr
    assert "'later'" in invoke("search", file, "--budget", "later", code=2).stderr
    file.write_text('sauce = "fashion-vit"\n')
    assert "did you mean" in invoke("search", file, code=2).stderr


FOUND = Found(**{name: value for name, value in vars(OUTCOME).items() if name != "chosen"})


def test_what_was_found_is_shown_and_drawn_though_nothing_meets_the_limits(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def export_recipe(*arguments: Any, **settings: Any) -> None:
        raise refusal("net", replace(FOUND, limits=SearchLimits(latency_ms=0.1)))

    monkeypatch.setitem(sys.modules, "edgekit.pipeline", SimpleNamespace(export_recipe=export_recipe))
    asked = ("search", "fashion-vit", "--device", "raspberry-pi-5", "--limit", "latency=0.1ms")
    result = invoke(*asked, "--plot", tmp_path / "front.svg", code=14)
    assert "no recipe of net was found" in result.stderr
    assert "Pareto front, verified" in result.stdout
    assert all(str(one.configuration) in result.stdout for one in FRONT)
    assert "chosen" not in result.stdout
    assert "none within the limits" in (tmp_path / "front.svg").read_text(encoding="utf-8")
    told = json.loads(invoke(*asked, "--json", code=14).stdout)
    assert [row["latency_ms"] for row in told["error"]["search"]["front"]] == [1.0, 2.0, 4.0]


def test_a_search_that_built_nothing_draws_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def export_recipe(*arguments: Any, **settings: Any) -> None:
        raise refusal("net", replace(FOUND, verified=(FAILED,), front=(), expected=()))

    monkeypatch.setitem(sys.modules, "edgekit.pipeline", SimpleNamespace(export_recipe=export_recipe))
    asked = ("search", "fashion-vit", "--device", "raspberry-pi-5", "--limit", "latency=1ms")
    assert "could be built" in invoke(*asked, "--plot", tmp_path / "front.svg", code=14).stderr
    assert not (tmp_path / "front.svg").exists()


def test_recipes_that_all_lose_far_too_much_are_drawn_all_the_same() -> None:
    shapes = search_shapes(replace(FOUND, verified=(FAR,), front=(FAR,), expected=()), "net")
    assert len(dots(shapes)) == 1
