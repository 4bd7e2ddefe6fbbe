"""How far one fleet service goes: agents, telemetry, a bad bundle, and what an update takes on the wire.

    python -m samples.benchmarks.fleet [--part agents|ingest|bad-bundle|delta] [--devices N] [--seconds N]

Service, database and simulated devices share this machine. Devices ask every 30 s, and tell what they saw since. A
part that is left out keeps what was measured before. The database syncs each commit to the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.fleet.client import AgentClient, FleetClient
from edgekit.fleet.protocol.agents import Enrolment, Facts
from edgekit.fleet.protocol.people import GroupOrder, InvitationOrder
from edgekit.fleet.protocol.rollouts import ENDED, RolloutOrder, RolloutView
from edgekit.fleet.protocol.windows import MAX_WINDOWS
from edgekit.fleet.protocol.wire import new_identifier
from edgekit.fleet.simulation.behaviour import FAULTS, Behaviour, Senses
from edgekit.fleet.simulation.line import Line
from edgekit.fleet.trust.authority import certificate_request
from samples.benchmarks.common import RESULTS, environment, rounded, save
from samples.benchmarks.fleet_bundle import make_bundle, matrix
from samples.benchmarks.fleet_processes import (
    EDGEKIT,
    CountingWay,
    Served,
    cpu_s,
    outcome_of,
    peak_mb,
    postgresql,
    served,
)

PARTS = ("agents", "ingest", "bad-bundle", "delta")
INTERVAL_S = 30.0
ENROL_LIMIT_S = 900.0
GUARDS = "agreement>=0.97,p95<=80ms,errors<=0.1%"


def sync_ms(folder: Path, rounds: int = 50) -> float:
    """What the disk takes to keep 4 kB for good, the median: no commit is faster."""
    laps = []
    with (folder / "sync").open("wb") as stream:
        for _ in range(rounds):
            start = time.perf_counter()
            stream.write(os.urandom(4096))
            stream.flush()
            os.fsync(stream.fileno())
            laps.append(1e3 * (time.perf_counter() - start))
    return sorted(laps)[rounds // 2]


def agents(database: str | None, database_process: int | None, devices: int, seconds: float) -> dict[str, Any]:
    """Devices that ask every 30 s for `seconds`, once all are enrolled."""
    with served(database) as service:
        simulation = service.simulate(
            "--devices", str(devices), "--seconds", str(seconds), "--running", _small(service)
        )
        with service.client() as client:
            _wait(lambda: client.overview().devices >= devices or simulation.poll() is not None, ENROL_LIMIT_S, 5.0)
        before = (cpu_s(service.process), cpu_s(database_process) if database_process else 0.0)
        found = outcome_of(simulation, seconds + 120)
        spent = cpu_s(service.process) - before[0]
        in_database = cpu_s(database_process) - before[1] if database_process else 0.0
        syncs = max(1, found["syncs"])
        return {
            **found,
            "peak_mb": peak_mb(service.process),
            "service_cpu_ms_per_sync": 1e3 * spent / syncs,
            "database_cpu_ms_per_sync": 1e3 * in_database / syncs,
            # What one core would do if nothing else ran on it: the bound that the goal stands beside.
            "syncs_per_s_of_a_core": syncs / max(1e-9, spent),
            "disk_sync_ms": sync_ms(service.folder),
        }


def ingest(database: str | None, database_process: int | None, seconds: float, lines: int = 16) -> dict[str, Any]:
    """Full messages of windows from `lines` devices at once, each sent when the one before was stored."""
    with served(database) as service:
        digest = _small(service)
        tokens = _enrol(service, lines)
        before = (cpu_s(service.process), cpu_s(database_process) if database_process else 0.0)
        stored, laps, elapsed = asyncio.run(_flood(service, tokens, digest, seconds))
        spent = cpu_s(service.process) - before[0]
        in_database = cpu_s(database_process) - before[1] if database_process else 0.0
        laps.sort()
        return {
            "windows_per_message": MAX_WINDOWS,
            "messages_at_once": lines,
            "windows": stored,
            "seconds": elapsed,
            "windows_per_s": stored / elapsed,
            "message_p50_ms": 1e3 * laps[len(laps) // 2],
            "message_p99_ms": 1e3 * laps[int(0.99 * len(laps))],
            "service_cpu_us_per_window": 1e6 * spent / max(1, stored),
            "database_cpu_us_per_window": 1e6 * in_database / max(1, stored),
            "peak_mb": peak_mb(service.process),
        }


async def _flood(service: Served, tokens: list[str], digest: str, seconds: float) -> tuple[int, list[float], float]:
    """(windows that were acknowledged, seconds of each message, seconds in all)."""
    parts = urlsplit(service.url)
    start = time.perf_counter()
    laps: list[float] = []

    async def send(number: int, token: str) -> int:
        line = Line(parts.hostname or "", parts.port or 0, token)
        senses, sequence, stored = Senses(Behaviour(), number), 0, 0
        # The same windows under new numbers: making them must not take what is measured.
        texts = [
            senses.window(987654321, time.time(), 30.0, digest, None).model_dump_json() for _ in range(MAX_WINDOWS)
        ]
        while time.perf_counter() - start < seconds:
            held = ",".join(text.replace("987654321", str(sequence + n), 1) for n, text in enumerate(texts))
            began = time.perf_counter()
            status, body = await line.call("POST", "/v1/agent/sync", f'{{"windows":[{held}]}}'.encode())
            laps.append(time.perf_counter() - began)
            if status != 200 or json.loads(body)["taken"] != sequence + MAX_WINDOWS - 1:
                raise RuntimeError(f"status {status}: {body[:200]!r}")
            sequence += MAX_WINDOWS
            stored += MAX_WINDOWS
        line.close()
        return stored

    counts = await asyncio.gather(*(send(number, token) for number, token in enumerate(tokens)))
    return sum(counts), laps, time.perf_counter() - start


def bad_bundle(fault: str, devices: int, soak_s: float = 45.0) -> dict[str, Any]:
    """A good bundle to all, then one that passes its golden answers and does harm, at a canary of 1 %."""
    with served() as service, service.client() as client:
        good, bad = (_push(client, name, seed) for name, seed in (("good", 1), ("bad", 2)))
        client.put_group("sim", GroupOrder(selector="site=sim", interval_s=5.0, compare_share=0.5))
        simulation = service.simulate(
            *("--devices", str(devices), "--seconds", "400", "--label", "site=sim", "--update", "2", "--rate", "4"),
            *("--errors", "0%", "--agreement", "99.5%", "--latency", "30", "--bad-bundle", f"{fault}@{bad}"),
        )
        _wait(lambda: client.overview().devices >= devices, ENROL_LIMIT_S, 1.0)
        first = _roll_out(client, RolloutOrder(bundle=good, group="sim", steps=(1.0,), soak_s=0), 180)
        order = RolloutOrder(bundle=bad, group="sim", steps=(0.01, 0.1, 1.0), guards=GUARDS, soak_s=soak_s)
        second = _roll_out(client, order, 180)
        time.sleep(10.0)  # the last of them says that it is back
        simulation.terminate()
        found = outcome_of(simulation, 60)
        return {
            "devices": devices,
            "canary": 0.01,
            "good_rollout": first.state,
            "good_rollout_s": (first.ended_at or 0) - first.started_at,
            "bad_rollout": second.state,
            "bad_rollout_s": (second.ended_at or 0) - second.started_at,
            "reason": second.reason,
            "ever_ran_it": found["bad_bundle"]["ever_ran"],
            "back_by_themselves": found["bad_bundle"]["returned"],
            "runs_the_good_one_now": found["bundles"].get(good, {}).get("running", 0),
            "errors": found["errors"],
        }


def _roll_out(client: FleetClient, order: RolloutOrder, limit_s: float) -> RolloutView:
    """To its end, or as far as it comes."""
    view = client.roll_out(order)
    _wait(lambda: client.rollout(view.id).state in ENDED, limit_s, 0.5)
    return client.rollout(view.id)


def delta(size_bytes: int = 20_000_000, head_bytes: int = 2_000_000) -> dict[str, Any]:
    """The real agent behind a way that counts: from a bundle to one of which a head has changed."""
    with served() as service, service.client() as client, tempfile.TemporaryDirectory() as name:
        folder, tail = Path(name), matrix(0, size_bytes - head_bytes)
        archives = [
            make_bundle(folder / f"v{version}.edgekit", "net", {"head": matrix(version, head_bytes), "tail": tail})
            for version in (1, 2)
        ]
        digests = [client.push(path).digest for path in archives]
        client.put_group("pi", GroupOrder(selector="site=pi"))
        way = CountingWay(urlsplit(service.url).port or 0)
        token = client.invite(InvitationOrder(labels={"site": "pi"})).token
        home = ["--home", str(folder / "home")]
        url = f"http://127.0.0.1:{way.port}"
        enrol = [*EDGEKIT, "agent", "enroll", "--fleet", url, "--token", token, "--name", "pi-1", *home]
        subprocess.run(enrol, check=True, capture_output=True)
        with (folder / "agent.log").open("w") as log:
            agent = subprocess.Popen([*EDGEKIT, "agent", "run", *home], stdout=log, stderr=log)
            try:
                first = _counted(client, way, digests[0])
                second = _counted(client, way, digests[1])
            finally:
                agent.terminate()
                agent.wait(30)
                way.close()
        view = client.bundle(digests[1])
        changed = next(one.size_bytes for one in view.files if one.path == "parts/head.onnx")
        return {
            "bundle_bytes": view.size_bytes,
            "changed_part_bytes": changed,
            "whole_archive_bytes": archives[1].stat().st_size,
            "first_install_bytes": first,
            "update_bytes": second,
            "update_over_changed": second / changed,
            "whole_archive_over_changed": archives[1].stat().st_size / changed,
        }


def _counted(client: FleetClient, way: CountingWay, digest: str) -> int:
    """Bytes towards the agent until it answers right with `digest`, both ways."""
    before = way.down_bytes + way.up_bytes
    view = _roll_out(client, RolloutOrder(bundle=digest, group="pi", steps=(1.0,), soak_s=0), 120)
    if view.state != "complete":
        raise RuntimeError(f"the rollout is {view.state}: {view.reason}")
    return way.down_bytes + way.up_bytes - before


def _small(service: Served) -> str:
    with service.client() as client:
        return _push(client, "net", 0)


def _push(client: FleetClient, name: str, seed: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = make_bundle(Path(folder) / f"{name}.edgekit", name, {"model": matrix(seed, 100_000)})
        return client.push(path).digest


def _enrol(service: Served, devices: int) -> list[str]:
    """Their tokens."""
    with service.client() as client:
        token = client.invite(InvitationOrder(uses=devices)).token
    key, made = ec.generate_private_key(ec.SECP256R1()), []
    agent = AgentClient(service.url)
    for number in range(devices):
        facts = Facts(boot=new_identifier(), agent="1", system="Linux", machine="aarch64")
        name = f"sim-{number}"
        enrolment = Enrolment(token=token, name=name, request=certificate_request(key, name), facts=facts)
        made.append(agent.enroll(enrolment).token)
    agent.close()
    return made


def _wait(is_done: Any, limit_s: float, every_s: float) -> None:
    until = time.monotonic() + limit_s
    while not is_done() and time.monotonic() < until:
        time.sleep(every_s)


def measure(part: str, devices: int | None, seconds: float) -> dict[str, Any]:
    if part == "delta":
        return delta()
    if part == "bad-bundle":
        return {fault: bad_bundle(fault, devices or 1_000) for fault in FAULTS}
    with postgresql() as (database, process):
        if part == "ingest":
            found = {"postgresql": ingest(database, process, min(seconds, 20.0))}
            return found | {"sqlite": ingest(None, None, min(seconds, 20.0))}
        found = {"postgresql": agents(database, process, devices or 10_000, seconds)}
    return found | {"sqlite": agents(None, None, min(devices or 2_000, 2_000), seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given again")
    parser.add_argument("--devices", type=int, help="simulated ones; 10,000, 2,000 and 1,000 without")
    parser.add_argument("--seconds", type=float, default=120.0, help="of asking, once all are enrolled")
    options = parser.parse_args()
    path = RESULTS / "fleet.json"
    held = json.loads(path.read_text())["parts"] if path.exists() else {}
    for part in options.part or PARTS:
        measured = rounded(measure(part, options.devices, options.seconds))
        print(part, json.dumps(measured, indent=2), flush=True)
        held[part] = {**environment(1, ("sqlalchemy", "psycopg", "uvicorn", "uvloop")), "measured": measured}
        print("written:", save("fleet", {"interval_s": INTERVAL_S, "parts": held}))


if __name__ == "__main__":
    main()
