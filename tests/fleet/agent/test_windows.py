"""What applications, the node and the board tell, summed up into windows."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edgekit.fleet.agent import spool as spool_module
from edgekit.fleet.agent.collector import Collector
from edgekit.fleet.agent.health import memory_used, power_w, read_health, temperature_c
from edgekit.fleet.agent.home import Home, State
from edgekit.fleet.agent.node_seen import NodeSeen, parse, spread, tally_of
from edgekit.fleet.agent.ring import Ring
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.spool import SpoolRecorder, read_spool
from edgekit.fleet.agent.tally import Tally
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.protocol.windows import Health
from edgekit.fleet.telemetry.histogram import bucket_of, percentile
from tests.fleet.agent.fleets import LocalFleet, trial
from tests.fleet.conftest import SettableClock

A, B = "a" * 64, "b" * 64


def recorder(home: Home, digest: str = A, clock: SettableClock | None = None) -> SpoolRecorder:
    return SpoolRecorder(home.path, digest, now=clock or SettableClock())


def test_sums_of_threads_and_processes_add_up(home: Home) -> None:
    one, other = recorder(home), recorder(home)

    def answer(to: SpoolRecorder) -> None:
        for _ in range(500):
            to.answered(10.0, "split", confidence=0.9, input_means=[0.5], late=True)

    threads = [threading.Thread(target=answer, args=(to,)) for to in (one, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.failed()
    one.linked(20.0, 5.0, 0.0)
    one.close()
    other.close()
    tally = read_spool(home.spool)[0][A]
    assert (tally.answered, tally.errors, tally.late) == (1500, 1, 1500)
    assert tally.latency == {bucket_of(10.0): 1500} and tally.plans == {"split": 1500}
    assert tally.links == [[20.0, 5.0, 0.0]] or tally.links == [(20.0, 5.0, 0.0)]


def test_application_without_an_agent_fills_no_disk_and_loses_no_counts(
    home: Home, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = recorder(home, clock=clock)
    for _ in range(100):
        clock.advance(60)
        to.answered(1.0)
    files = list(home.spool.iterdir())
    assert len(files) == spool_module.MOST_OWN
    for path in files:
        path.unlink()
    to.close()
    left = read_spool(home.spool)[0][A].answered
    assert left == 100 - spool_module.MOST_OWN


def test_application_goes_on_where_there_is_no_spool(tmp_path: Path) -> None:
    to = SpoolRecorder(tmp_path / "none", A, flush_s=0.0)
    to.answered(1.0)
    to.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"digest": "x"}',
        b'{"digest": "' + b"a" * 64 + b'", "answered": "many"}',
        b"\xff\xfe",
        b" " * 100_000,
        b'{"digest": "' + b"a" * 64 + b'", "latency": {"x": 1}}',
    ],
)
def test_files_that_are_no_reports_are_passed_over_and_taken_away(home: Home, content: bytes) -> None:
    (home.spool / "1-x-1.json").write_bytes(content)
    found, files = read_spool(home.spool)
    assert found == {} and len(files) == 1


def test_links_in_the_spool_are_not_followed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(json.dumps({"digest": A, "answered": 5}))
    (home.spool / "1-x-1.json").symlink_to(tmp_path / "secret")
    assert read_spool(home.spool)[0] == {}


def collector(
    home: Home, clock: SettableClock, active: str | None = A, ring: Ring | None = None, health: Health = Health()
) -> Collector:
    updater = Updater(home, "device", NoRuntime(), trial)
    updater.state = State(active=active)
    return Collector(
        home, updater, ring or Ring(home), None, health=lambda path: health, now=clock, wall=lambda: 1e9 + clock()
    )


def test_window_holds_what_was_seen_since_the_last_one(home: Home, clock: SettableClock) -> None:
    health = Health(temperature_c=61.5, power_w=4.0)
    collecting = collector(home, clock, health=health)
    to = recorder(home)
    for ms in (5.0, 10.0, 20.0):
        to.answered(ms, "local" if ms < 15 else "split", degraded=ms > 15)
    to.linked(10.0, 4.0, 0.0)
    to.linked(30.0, 6.0, 0.02)
    to.close()
    clock.advance(60)
    (window,) = collecting.collect()
    assert (window.digest, window.seconds, window.answered, window.degraded) == (A, 60.0, 3, 1)
    assert window.plan == "local" and window.health == health and window.energy_mj == 240_000.0
    assert window.link is not None and window.link.bandwidth_mbps == 20.0
    assert not list(home.spool.iterdir())
    clock.advance(60)
    (idle,) = collecting.collect()
    assert (idle.answered, idle.energy_mj, idle.sequence) == (0, None, 1)


def test_each_bundle_has_windows_of_its_own(home: Home, clock: SettableClock) -> None:
    collecting = collector(home, clock)
    for digest in (A, B):
        to = recorder(home, digest)
        to.answered(1.0)
        to.close()
    assert {window.digest: window.answered for window in collecting.collect()} == {A: 1, B: 1}


def test_energy_is_shared_by_the_answers_of_the_bundles_that_ran(home: Home, clock: SettableClock) -> None:
    collecting = collector(home, clock, health=Health(power_w=4.0))
    for digest, answers in ((A, 30), (B, 10)):
        to = recorder(home, digest)
        for _ in range(answers):
            to.answered(1.0)
        to.close()
    clock.advance(60)
    energy = {window.digest: window.energy_mj for window in collecting.collect()}
    assert energy == {A: 180_000.0, B: 60_000.0}, "240 J in all, 6 J an answer"


def test_what_a_node_did_before_a_switch_is_told_of_the_bundle_that_did_it(
    home: Home, clock: SettableClock, bundles: dict[str, Path], digests: dict[str, str]
) -> None:
    fleet = LocalFleet(*bundles.values())
    updater = Updater(home, "device", NoRuntime(), trial)
    updater.start()
    updater.follow(fleet, digests["old"])
    ring = Ring(home)
    collecting = Collector(home, updater, ring, "http://127.0.0.1:9", health=lambda path: Health(), now=clock)
    done = {"count": 0}

    class Node(NodeSeen):
        def read(self) -> Tally:
            grown, done["count"] = done["count"], 0
            return Tally(answered=grown)

    collecting._node = Node("")
    collecting.start()
    done["count"] = 7
    updater.follow(fleet, digests["new"])
    done["count"] = 2
    updater.leave(home.slot(digests["new"]), "it ends over and over")
    done["count"] = 3
    updater.follow(fleet, None)
    collecting.close()
    told = [(window.digest, window.answered) for window in ring.oldest(64) if window.answered]
    assert told == [(digests["old"], 7), (digests["new"], 2), (digests["old"], 3)]


def test_nothing_runs_nothing_is_told(home: Home, clock: SettableClock) -> None:
    assert collector(home, clock, active=None).collect() == []


def test_clock_that_jumps_back_or_stands_still_makes_windows_all_the_same(home: Home, clock: SettableClock) -> None:
    collecting = collector(home, clock)
    collecting._wall = lambda: -5.0
    (window,) = collecting.collect()
    assert window.started_at == 0.0 and window.seconds > 0


def test_report_that_a_cut_left_behind_counts_once(home: Home, clock: SettableClock) -> None:
    to = recorder(home)
    to.answered(1.0)
    to.close()
    (left,) = home.spool.iterdir()
    content = left.read_bytes()
    collector(home, clock).collect()
    left.write_bytes(content)  # as if the power had gone before it was removed
    (window,) = collector(home, clock, ring=Ring(home)).collect()
    assert window.answered == 0 and not list(home.spool.iterdir())


def test_histogram_never_has_more_buckets_than_a_window_takes() -> None:
    tally = Tally(answered=400, latency={bucket: 1 + (bucket % 3) for bucket in range(-200, 200)})
    bounded = tally.to_window()["latency"]
    assert len(bounded) == 200 and sum(bounded.values()) == sum(tally.latency.values())


METRICS = """\
# HELP edgekit_requests_total Requests answered
# TYPE edgekit_requests_total counter
edgekit_requests_total{model="net.tail"} 8.0
edgekit_requests_created{model="net.tail"} 1.7e+09
edgekit_failures_total{kind="DeadlineError",model="net.tail"} 2.0
edgekit_failures_total{kind="InputError",model=""} 1.0
edgekit_request_seconds_bucket{le="0.01",model="net.tail"} 4.0
edgekit_request_seconds_bucket{le="0.02",model="net.tail"} 8.0
edgekit_request_seconds_bucket{le="+Inf",model="net.tail"} 8.0
process_resident_memory_bytes 1.0
nonsense {{{
"""


def test_metrics_of_a_node_are_read() -> None:
    tally = tally_of(parse(METRICS))
    assert (tally.answered, tally.errors, tally.late) == (8, 3, 2)
    assert sum(tally.latency.values()) == 8
    assert 10 < percentile(tally.latency, 0.95) <= 20 * 2**0.125  # the middle of the bucket that holds 20 ms


def test_a_node_tells_what_grew_and_all_of_it_after_it_was_started_again() -> None:
    told = {"count": 8}

    class Node(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'edgekit_requests_total{{model="net"}} {told["count"]}\n'.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Node) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        seen = NodeSeen(f"http://127.0.0.1:{server.server_port}")
        found = []
        for told["count"] in (8, 11, 11, 5):
            found.append(seen.read().answered)
        server.shutdown()
        assert found == [8, 3, 0, 5]
        server.server_close()
        assert seen.read() == Tally()


def test_ladder_is_spread_between_its_bounds() -> None:
    found = spread({0.01: 0.0, 0.02: 4.0, float("inf"): 5.0})
    high = bucket_of(20.0)
    assert found == {high - 3: 1, high - 2: 1, high - 1: 1, high: 1, high + 1: 1}
    assert spread({}) == {} and spread({float("inf"): 3.0}) == {}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hottest_zone_counts_and_dead_ones_do_not(tmp_path: Path) -> None:
    for number, text in enumerate(["42123\n", "-256000\n", "61500\n", "0\n", "nonsense\n"]):
        write(tmp_path / f"thermal_zone{number}" / "temp", text)
    (tmp_path / "thermal_zone9").mkdir()
    assert temperature_c(tmp_path) == 61.5
    assert temperature_c(tmp_path / "none") is None


def test_power_of_the_whole_board_is_read_from_its_sensor(tmp_path: Path) -> None:
    chip = tmp_path / "hwmon3"
    write(chip / "name", "ina3221\n")
    for channel, (label, mv, ma) in enumerate(
        [("VDD_IN", 19_000, 400), ("VDD_CPU_GPU_CV", 19_000, 150), ("VDD_SOC", 19_000, 90)], 1
    ):
        write(chip / f"in{channel}_label", label)
        write(chip / f"in{channel}_input", str(mv))
        write(chip / f"curr{channel}_input", str(ma))
    write(tmp_path / "hwmon0" / "name", "cpu_thermal\n")
    assert power_w(tmp_path) == pytest.approx(7.6)
    other = tmp_path / "other"
    write(other / "hwmon1" / "name", "ina226\n")
    write(other / "hwmon1" / "power1_input", "3300000\n")
    assert power_w(other) == pytest.approx(3.3)
    assert power_w(tmp_path / "none") is None


def test_memory_is_what_the_kernel_would_not_give_back(tmp_path: Path) -> None:
    write(tmp_path / "meminfo", "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   400 kB\n")
    assert memory_used(tmp_path / "meminfo") == 600 * 1024
    assert memory_used(tmp_path / "none") is None


def test_this_machine_can_be_read_without_an_error(home: Home) -> None:
    assert read_health(home.path).disk_free_bytes is not None
    assert os.getpid() and read_health(home.path / "gone").disk_free_bytes is None
