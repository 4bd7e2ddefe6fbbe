from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli.main import cli
from edgekit.cli.serve import command as serve
from edgekit.errors import OutputError, UnknownNameError, UsageError
from edgekit.tuning.settings import Settings, read_settings, sample, space, usual, write_settings


def test_the_space_holds_what_can_matter_and_nothing_twice() -> None:
    found = space([("joins", True), ("single", False)], 4, 100.0)
    assert len(set(found)) == len(found)
    assert all(one.workers * one.threads <= 4 for one in found)
    assert {(one.workers, one.threads) for one in found} >= {(1, 1), (4, 1), (1, 4), (2, 2)}
    assert {(one.max_batch, one.max_delay_ms) for one in found if one.part == "single"} == {(1, 0.0)}
    assert all(one.max_delay_ms == 0 for one in found if one.max_batch == 1)


def test_waiting_leaves_time_for_the_answer() -> None:
    assert max(one.max_delay_ms for one in space([("whole", True)], 1, 6.0)) <= 0.4 * 6
    assert {one.max_delay_ms for one in space([("whole", True)], 1, 0.5)} == {0.0}


def test_a_sample_is_part_of_the_whole_and_has_a_seed() -> None:
    whole = space([("whole", True)], 4, 100.0)
    found = sample(whole, 10, 1)
    assert len(found) == 10 and set(found) <= set(whole)
    assert found == sample(whole, 10, 1) != sample(whole, 10, 2)
    assert sample(whole, 1000, 1) == whole


def test_the_usual_settings_are_those_of_a_server_without_options_and_always_in_a_sample() -> None:
    whole = space([("first", True), ("second", True)], 4, 100.0)
    found = usual(whole)
    assert found == Settings("first", 16, 0.0, 1, 4)
    assert usual(space([("first", False)], 2, 100.0)) == Settings("first", 1, 0.0, 1, 2)
    for seed in range(20):
        drawn = sample(whole, 5, seed, found)
        assert found in drawn
        assert len(drawn) == len(set(drawn)) == 5
        assert drawn == sorted(drawn, key=whole.index)


def test_every_setting_is_an_option_of_serve() -> None:
    known = {parameter.name for parameter in serve.params}
    assert set(Settings("whole").options) <= known


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path, settings = tmp_path / "tuned.toml", Settings("whole", 8, 2.5, 2, 1)
    write_settings(path, settings, "told\non two lines")
    assert path.read_text().startswith("# told\n# on two lines\n")
    assert read_settings(path) == settings.options
    with pytest.raises(OutputError):
        write_settings(tmp_path / "missing" / "tuned.toml", settings, "")


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text("max_bach = 8\n")
    with pytest.raises(UnknownNameError) as caught:
        read_settings(path)
    assert caught.value.nearest == "max_batch"
    path.write_text("max_batch 8")
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(path)
    with pytest.raises(UsageError, match=r"missing\.toml"):
        read_settings(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_bach = 8\n", "did you mean 'max_batch'"),
        ("max_batch = 8.5\n", "max_batch: '8.5' is not a valid integer"),
        ("max_batch = 0\n", "max_batch: 0 is not in the range"),
        ("workers = true\n", "workers is true, allowed a number or a text"),
        ("degrade = 1\n", "degrade is 1, allowed true or false"),
        ("workers = [1, 2]\n", "workers is [1, 2], allowed a number or a text"),
        ("tls = 'only.pem'\n", "tls: 'only.pem', allowed CERT,KEY"),
        ("max_delay_ms = inf\n", "max_delay_ms: "),
        ("settings = 'other.toml'\n", "settings"),
    ],
)
def test_serve_refuses_a_file_that_does_not_fit(tmp_path: Path, whole_bundle: Path, text: str, told: str) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text(text)
    found = CliRunner().invoke(cli, ["serve", str(whole_bundle), "--settings", str(path)])
    assert found.exit_code == 2
    assert told in found.stderr and str(path) in found.stderr


def test_the_command_line_overrides_the_file(tmp_path: Path, whole_bundle: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text('max_batch = 8\nmax_delay_ms = 2\nhost = "somewhere.example"\n')
    context = serve.make_context("serve", [str(whole_bundle), "--max-batch", "4", "--settings", str(path)])
    assert (context.params["max_batch"], context.params["max_delay_ms"]) == (4, 2.0)
    assert context.params["host"] == "somewhere.example"
    assert context.params["queue"] == 64
    assert "settings" not in context.params
