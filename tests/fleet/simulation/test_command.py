"""`edgekit fleet simulate` and `edgekit fleet telemetry` against a service that listens."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.main import cli
from edgekit.fleet.protocol.people import GroupOrder
from tests.fleet.acting import ADMIN, enroll, says, window

if TYPE_CHECKING:
    from tests.fleet.simulation.conftest import Served

Run = Callable[..., Result]
OLD = "a" * 64


@pytest.fixture
def run(served: Served, monkeypatch: pytest.MonkeyPatch) -> Run:
    token = served.service.people.found()
    assert token is not None
    monkeypatch.setenv("EDGEKIT_FLEET", served.url)
    monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", token)
    return lambda *arguments: CliRunner().invoke(cli, ["fleet", *map(str, arguments)])


@pytest.fixture
def measured(served: Served) -> None:
    """Ten windows of one device in the group `pi`, five minutes ago."""
    service = served.service
    service.groups.put(ADMIN, "pi", GroupOrder(selector="board=rpi4"))
    device = enroll(service, "pi-1", {"board": "rpi4"}).device
    then = service.core.now() - 300
    windows = [window(number, OLD, then + number, latency={20: 10}) for number in range(10)]
    service.devices.sync(device, says(OLD, *windows))
    service.devices.close()  # writes the spans


def test_devices_are_simulated_and_counted(served: Served, run: Run) -> None:
    result = run("simulate", "--devices", 5, "--seconds", 1.5, "--interval", 0.4, "--label", "site=sim", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["simulation"]
    assert found["enrolled"] == 5 and found["syncs"] > 0 and found["errors"] == {}
    assert [one.labels for one in served.service.devices.list("site=sim").items] == [{"site": "sim"}] * 5


def test_a_table_tells_people_what_came_out(run: Run) -> None:
    result = run("simulate", "--devices", 3, "--seconds", 1, "--interval", 0.4, "--prefix", "mine")
    assert result.exit_code == 0, result.output
    assert "devices:" in result.stdout and "p99" in result.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--bad-bundle", "evil"), "allowed wrong, slow, crash"),
        (("--bad-bundle", "slow:0%"), "share"),
        (("--offline", "120%"), "share"),
        (("--label", "site"), "key=value"),
        (("--devices", "0"), "range"),
        (("--seconds", "nan"), "finite"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_a_device_enrols(
    served: Served, run: Run, options: tuple[str, ...], told: str
) -> None:
    result = run("simulate", "--seconds", "1", *options)
    assert result.exit_code != 0 and told in str(result.exception or "") + result.output
    assert served.service.devices.count()[0] == 0


@pytest.mark.usefixtures("measured")
def test_telemetry_is_told_as_a_table_as_json_and_as_a_plot(run: Run, tmp_path: Path) -> None:
    plot = tmp_path / "pi.svg"
    result = run("telemetry", "--group", "pi", "--since", "1h", "--step", "5m", "--plot", plot)
    assert result.exit_code == 0, result.output
    assert OLD[:12] in result.stdout and plot.read_text().startswith("<svg")
    view = json.loads(run("telemetry", "--device", "pi-1", "--json").stdout)["telemetry"]
    assert sum(one["windows"] for one in view["spans"]) == 10
    everyone = json.loads(run("telemetry", "--json").stdout)["telemetry"]
    assert everyone["scope"] == "everyone" and sum(one["answered"] for one in everyone["spans"]) == 100


@pytest.mark.usefixtures("measured")
def test_windows_are_exported_as_csv_and_as_parquet_alike(run: Run, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason='pyarrow is not installed: pip install "edgekit[parquet]"')
    table, columns = tmp_path / "w.csv", tmp_path / "w.parquet"
    assert run("telemetry", "--group", "pi", "--csv", table).exit_code == 0
    assert run("telemetry", "--select", "name=pi-1", "--parquet", columns).exit_code == 0
    rows, read = list(csv.DictReader(table.open())), parquet.read_table(columns).to_pylist()
    assert len(rows) == len(read) == 10
    assert [int(row["sequence"]) for row in rows] == [row["sequence"] for row in read] == list(range(10))
    assert float(rows[0]["p95_ms"]) == read[0]["p95_ms"] and read[0]["energy_mj"] is None
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.usefixtures("measured")
def test_without_pyarrow_the_exact_command_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("telemetry", "--parquet", tmp_path / "w.parquet")
    assert 'pip install "edgekit[parquet]"' in str(result.exception) + result.output
    assert not list(tmp_path.iterdir())[1:]


@pytest.mark.usefixtures("measured")
def test_a_file_that_was_there_stays_where_the_export_fails(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "w.csv"
    table.write_text("mine")
    result = run("telemetry", "--select", "board==", "--csv", table)
    assert result.exit_code != 0 and table.read_text() == "mine"
    assert run("telemetry", "--csv", tmp_path / "no" / "w.csv").exit_code != 0


@pytest.mark.parametrize(
    "options",
    [
        ("--device", "a", "--group", "b"),
        ("--csv", "a", "--parquet", "b"),
        ("--select", "a=b"),
        ("--since", "5"),
        ("--step", "0m"),
        ("--since", "7d", "--step", "10s", "--device", "a"),
    ],
)
def test_options_that_exclude_each_other_and_times_that_are_none_are_refused(
    run: Run, options: tuple[str, ...]
) -> None:
    assert run("telemetry", *options).exit_code != 0
