from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgekit.cli.main import cli
from tests.runtimes.server.conftest import make_split
from tests.runtimes.server.steps import HEARD, step_bundle

QUICK = ("--request-cost", "0.5ms", "--seconds", "0.2", "--requests", "2000")


def run(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["capacity", *map(str, arguments)])
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def predicted(whole_bundle: Path) -> dict[str, Any]:
    """From a profile, so that the figures are the same everywhere."""
    words = ("--devices", "100000", "--rate", "0.2", "--slo", "p99=40ms", "--on", "edge=x86-server", *QUICK)
    found: dict[str, Any] = json.loads(
        run(whole_bundle, *words, "--price", "edge=0.25", "--link", "100mbps,10ms", "--json").stdout
    )
    return found


def test_replicas_carry_all_devices_within_the_objective(predicted: dict[str, Any]) -> None:
    tier = predicted["tiers"]["edge"]
    assert predicted["total_hz"] == pytest.approx(20_000)
    assert tier["simulated"]["percentile_ms"] <= 40
    assert tier["replicas"] * tier["requests_per_replica_hz"] == pytest.approx(20_000)
    assert tier["replicas"] * tier["devices_per_replica"] == pytest.approx(100_000)
    assert predicted["cost_per_hour"] == pytest.approx(0.25 * tier["replicas"])
    # 0.5 ms of own work a request: no replica does more than 2,000 a second.
    assert tier["requests_per_replica_hz"] < 2000
    assert tier["binds"] == "requests"


def test_both_answers_and_their_origins_are_told(predicted: dict[str, Any]) -> None:
    tier = predicted["tiers"]["edge"]
    assert tier["formulae"]["percentile_ms"] / tier["simulated"]["percentile_ms"] - 1 == pytest.approx(
        tier["disagreement"]
    )
    assert "simulation, not measurement" in predicted["note"]
    assert "predicted for x86-server" in tier["service"]["origin"]
    assert tier["request"]["origin"] == "as stated"
    assert tier["request"]["link_ms"] == pytest.approx(10 + 2 * 256 * 8 / 100e3)


def test_measured_run_times_come_with_residuals(whole_bundle: Path) -> None:
    words = ("--devices", "100", "--rate", "1", "--slo", "p95=1s", *QUICK)
    found = json.loads(run(whole_bundle, *words, "--json").stdout)
    service = found["tiers"]["edge"]["service"]
    assert "measured on this machine" in service["origin"]
    assert set(service["residuals"]) == {"1", "2", "4", "8", "16"}
    assert found["cost_per_hour"] is None
    assert found["replica_hours_per_hour"] == found["tiers"]["edge"]["replicas"] == 1


def test_people_read_that_it_is_simulation(whole_bundle: Path) -> None:
    words = ("--devices", "1000000", "--rate", "0.2", "--slo", "p99=200ms", "--on", "edge=x86-server", *QUICK)
    text = run(whole_bundle, *words).stdout
    assert "the figures for 1,000,000 devices are simulation, not measurement" in text
    assert "replica h" in text and "with " in text and "balance" in text


def test_an_objective_that_cannot_be_met_names_the_nearest(whole_bundle: Path) -> None:
    words = ("--devices", "10", "--rate", "1", "--slo", "p99=5ms", "--link", "10mbps,20ms", "--on", "edge=x86-server")
    found = run(whole_bundle, *words, *QUICK, code=14)
    hint = next(line for line in found.stderr.splitlines() if line.startswith("hint:"))
    limit = float(hint.partition("p99=")[2].removesuffix("ms"))
    assert 20 < limit < 25
    again = (*words[:5], f"p99={limit}ms", *words[6:])
    assert run(whole_bundle, *again, *QUICK).exit_code == 0


def test_each_tier_of_a_split_gets_replicas(tmp_path: Path) -> None:
    split = make_split(tmp_path / "net.edgekit")
    words = ("--devices", "5000", "--rate", "1", "--slo", "p99=60ms", "--price", "edge=0.1,cloud=1.2")
    found = json.loads(run(split, *words, *QUICK, "--edge-link", "1gbps,2ms", "--json").stdout)
    tiers = found["tiers"]
    assert list(tiers) == ["edge", "cloud"]
    assert tiers["edge"]["slo_ms"] + tiers["cloud"]["slo_ms"] == pytest.approx(60)
    cost = 0.1 * tiers["edge"]["replicas"] + 1.2 * tiers["cloud"]["replicas"]
    assert found["cost_per_hour"] == pytest.approx(cost)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--slo", "fast"), "p99=200ms"),
        (("--slo", "p99=1s", "--price", "moon=1"), "edge=0.1,cloud=1.2"),
        (("--slo", "p99=1s", "--price", "edge=-1"), "edge=0.1,cloud=1.2"),
        (("--slo", "p99=1s", "--on", "edge=x86-sever"), "x86-server"),
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(whole_bundle: Path, words: tuple[str, ...], told: str) -> None:
    found = run(whole_bundle, "--devices", "10", "--rate", "1", *words, *QUICK, code=2)
    assert told in found.stderr


def test_a_trace_of_arrivals_shapes_the_load(whole_bundle: Path, tmp_path: Path) -> None:
    bursts = tmp_path / "bursts.csv"
    bursts.write_text("\n".join(str(second + 0.0001 * index) for second in range(100) for index in range(20)))
    words = ("--devices", "5000", "--rate", "1", "--slo", "p95=30ms", "--on", "edge=x86-server", *QUICK, "--json")
    smooth = json.loads(run(whole_bundle, *words).stdout)
    uneven = json.loads(run(whole_bundle, *words, "--arrivals", bursts).stdout)
    seen = [
        (one["tiers"]["edge"]["replicas"], one["tiers"]["edge"]["simulated"]["wait_ms"]) for one in (smooth, uneven)
    ]
    assert seen[0] < seen[1]
    assert "bursts.csv" in uneven["note"]


def test_workers_that_memory_does_not_hold_are_left_out_and_told(whole_bundle: Path) -> None:
    words = ("--devices", "10", "--rate", "1", "--slo", "p95=1s", "--on", "edge=x86-server", *QUICK)
    # The node takes 160 MB; a worker 16 kB of weights and 16 rows of 512 bytes: 24.6 kB.
    found = run(whole_bundle, *words, "--workers", "8", "--memory", "160.08MB")
    assert "edge: 3 of 8 workers fit" in found.stderr
    assert "memory" in run(whole_bundle, *words, "--memory", "100MB", code=14).stderr


def test_none_of_it_needs_torch() -> None:
    blocked = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'executorch', 'transformers', 'scipy'}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import edgekit.cli.capacity, edgekit.cli.tune, edgekit.capacity.sizing, edgekit.capacity.overhead\n"
        "import edgekit.tuning.search, edgekit.tuning.trial, edgekit.cli.tune_plot\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "fine", done.stderr


def test_an_iterated_part_is_counted_by_the_step(tmp_path: Path) -> None:
    bundle = step_bundle(tmp_path / "heard.edgekit", HEARD)
    load = ("--devices", "100", "--rate", "1", *QUICK)
    refused = run(bundle, *load, "--slo", "p99=5s", code=2)
    assert "is iterated" in refused.stderr and "--steps" in refused.stderr
    told = run(bundle, *load, "--slo", "p99=5s", "--steps", "50", "--json")
    by_hand = run(bundle, "--devices", "100", "--rate", "50", *QUICK, "--slo", "p99=100ms", "--steps", "1", "--json")
    sized, plain = (json.loads(one.stdout)["tiers"]["edge"] for one in (told, by_hand))
    assert sized["replicas"] * sized["requests_per_replica_hz"] == pytest.approx(5000)
    assert plain["replicas"] * plain["requests_per_replica_hz"] == pytest.approx(5000)
    assert "counted by the step: 50" in told.stderr


def test_steps_of_what_is_not_iterated_are_refused(whole_bundle: Path) -> None:
    words = ("--devices", "100", "--rate", "1", "--slo", "p95=1s", *QUICK)
    assert "without an iterated part" in run(whole_bundle, *words, "--steps", "3", code=2).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "edge=nosuch"), "unknown device 'nosuch'"),
        (("--on", "edge=x86-servr"), "did you mean 'x86-server'"),
        (("--port", "1bps"), "--port '1bps' is no bandwidth"),
        (("--port", "20ms"), "--port '20ms' is no bandwidth"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, words: tuple[str, str], said: str
) -> None:
    """The bundle, which is not there, is not even looked at."""
    found = run(tmp_path / "missing", "--devices", "1", "--rate", "1", "--slo", "p99=1s", *words, code=2)
    assert said in found.stderr
