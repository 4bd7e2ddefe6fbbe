from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from PIL import Image

from edgekit.capacity.demand import Objective
from edgekit.cli.drawing import to_png, to_svg
from edgekit.cli.main import cli
from edgekit.cli.tune import _gain
from edgekit.cli.tune_plot import landscape
from edgekit.tuning.halving import Rung
from edgekit.tuning.search import Tuned
from edgekit.tuning.settings import Settings, read_settings, space
from edgekit.tuning.trial import Trial


def run(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["tune", *map(str, arguments)])
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return result


def test_a_real_node_is_tuned_kept_and_its_settings_are_served(whole_bundle: Path, tmp_path: Path) -> None:
    written, plot = tmp_path / "tuned.toml", tmp_path / "landscape.svg"
    words = (whole_bundle, "--slo", "p50=5s", "--seconds", "0.3", "--most", "2")
    found = json.loads(run(*words, "--out", written, "--plot", plot, "--json").stdout)
    assert found["best"]["rate_hz"] > 0
    assert found["rungs"] == [{"seconds": 0.3, "settings": 2}]
    best = {name: found["best"][name] for name in ("max_batch", "max_delay_ms", "workers", "threads")}
    assert read_settings(written) == best
    ElementTree.fromstring(plot.read_text())
    # What was measured is kept: the same question again starts no node and gives the same answer.
    again = run(*words, "--json")
    assert {**json.loads(again.stdout), "written": str(written)} == found
    assert "measured before, until 20" in again.stderr and ": all of it; --fresh measures anew" in again.stderr
    # What is served without options stands beside it.
    assert found["defaults"]["max_batch"] in (1, 16)
    assert {entry["part"] for entry in found["tried"]} == {found["defaults"]["part"]}
    shown = run(*words).stdout
    assert "p50 <= 5000 ms at" in shown and "defaults:" in shown
    taken = run(*words, "--out", written, code=10)
    assert "--force" in taken.stderr


def test_an_objective_out_of_reach_names_the_nearest_settings(whole_bundle: Path) -> None:
    found = run(whole_bundle, "--slo", "p50=0.001ms", "--seconds", "0.3", "--most", "2", code=14)
    assert "--slo p50=" in found.stderr and "--max-batch" in found.stderr


def test_a_part_that_is_not_there_is_named(whole_bundle: Path) -> None:
    found = run(whole_bundle, "--slo", "p95=1s", "--part", "hole", code=2)
    assert "'whole'" in found.stderr


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_place_that_takes_no_file_is_told_before_anything_is_tried(
    whole_bundle: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.tuning.search.tune", lambda *_: pytest.fail("it was tuned"))
    words = (whole_bundle, "--slo", "p95=1s")
    found = run(*words, option, tmp_path / "missing" / "it.svg", code=10)
    assert f"there is no folder {tmp_path / 'missing'}" in found.stderr
    if Path("/proc/version").exists():
        assert "/proc is not writable" in run(*words, option, "/proc/it.svg", code=10).stderr
    assert "exists" in run(*words, "--out", tmp_path, "--force", code=10).stderr


def test_more_cores_than_there_are_are_refused_with_what_there_is(whole_bundle: Path) -> None:
    here = len(os.sched_getaffinity(0))
    found = run(whole_bundle, "--slo", "p95=1s", "--cores", "256", code=2)
    assert f"--cores 256, allowed 1 to {max(1, here - 1)}: there are {here} here" in found.stderr


def test_an_unfinished_tuning_of_another_shape_is_begun_anew_and_told(
    whole_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    words = (whole_bundle, "--slo", "p50=5s", "--seconds", "0.3", "--most", "2", "--json")
    first = run(*words)
    (state,) = (tmp_path / "tune").glob("*.json")
    known = json.loads(state.read_text())
    assert len(known) == 2
    state.write_text(json.dumps({key: {"speed": 1} for key in known}))
    second = run(*words)
    assert "begun anew" in second.stderr
    assert json.loads(second.stdout)["best"]["rate_hz"] > 0 and json.loads(first.stdout)["best"]["rate_hz"] > 0


@pytest.mark.parametrize(
    ("rate_hz", "words"), [(50.0, "50 requests a second, the best 1.80x as many"), (0.0, "hold it at no rate tried")]
)
def test_the_gain_over_a_server_without_options_is_told(rate_hz: float, words: str) -> None:
    best, usual = Settings("whole", 8, 2.0), Settings("whole", 16)
    rungs = (Rung(1.0, ((best, Trial(90.0, 40.0, 99.0, ())),)),)
    [(name, told)] = _gain(Tuned(best, rungs, (usual, Trial(rate_hz, 40.0, 99.0, ()))))
    assert name == "defaults" and words in str(told) and str(usual) in str(told)
    assert _gain(Tuned(best, rungs, (best, rungs[0].found[0][1]))) == [("defaults", "are the best of these")]


def _tuned() -> Tuned:
    settings = space([("whole", True)], 2, 100.0)
    trials = tuple((one, Trial(float(10 * index), 5.0, 900.0, ())) for index, one in enumerate(settings))
    return Tuned(settings[-1], (Rung(1.0, trials),))


def test_the_landscape_has_a_cell_for_each_setting_and_rings_the_best() -> None:
    found = _tuned()
    svg = ElementTree.fromstring(to_svg(landscape(found, Objective(0.95, 50.0)), "settings"))
    space_of = "{http://www.w3.org/2000/svg}"
    cells = svg.findall(f"{space_of}rect")
    assert len(cells) == len(found.trials)
    assert len({(cell.get("x"), cell.get("y")) for cell in cells}) == len(cells)
    (ring,) = svg.findall(f"{space_of}circle")
    assert ring.get("fill") == "none"
    words = [cell.find(f"{space_of}title").text for cell in cells]  # type: ignore[union-attr]
    assert all(any(str(one) in text for text in words if text) for one in found.trials)


def test_the_landscape_is_drawn_as_pixels_too(tmp_path: Path) -> None:
    path = tmp_path / "landscape.png"
    path.write_bytes(to_png(landscape(_tuned(), Objective(0.95, 50.0))))
    with Image.open(path) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    # The darkest cell is the best one's.
    assert (0x1D, 0x5F, 0xD1) in {color for _, color in colors}


@pytest.mark.parametrize("settings", [Settings("whole", 1), Settings("whole", 32, 10.0, 2, 2)])
def test_settings_read_like_a_sentence(settings: Settings) -> None:
    assert str(settings).startswith(f"whole, batch {settings.max_batch}, wait {settings.max_delay_ms:g} ms")
