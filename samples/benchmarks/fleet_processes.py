"""What the fleet's benchmarks run: a PostgreSQL server, the service, simulated devices, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.fleet.client import FleetClient

TICK = os.sysconf("SC_CLK_TCK")
START_S = 60.0
EDGEKIT = [sys.executable, "-c", "from edgekit.cli.main import main; main()"]


def processes_of(root: int) -> list[int]:
    """`root` and what it started."""
    found = [root]
    for one in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def cpu_s(root: int) -> float:
    """Of all of its processes that still are."""
    total = 0
    for one in processes_of(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def peak_mb(root: int) -> float:
    """Resident, each process at its own peak, added up."""
    total = 0
    for one in processes_of(root):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return total / 1024


@contextlib.contextmanager
def postgresql() -> Iterator[tuple[str, int]]:
    """(URL, process) of an empty database of a server with Debian's settings but for 256 MB of buffers: it syncs."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    is_root = os.getuid() == 0
    user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if is_root else {}
    folder = Path(tempfile.mkdtemp(prefix="edgekit-pg-"))
    if is_root:
        shutil.chown(folder, pwd.getpwnam("postgres").pw_uid)
    run: dict[str, Any] = {"cwd": folder, "capture_output": True, "check": True, **user}
    server = None
    try:
        subprocess.run([binaries / "initdb", "-D", folder / "data", "-U", "fleet", "--auth=trust", "-E", "UTF8"], **run)
        settings = ["-c", "listen_addresses=", "-c", "shared_buffers=256MB", "-c", "log_min_messages=fatal"]
        command = [binaries / "postgres", "-D", folder / "data", "-k", folder, *settings]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
        until = time.monotonic() + START_S
        while subprocess.run([binaries / "pg_isready", "-q", "-h", folder]).returncode and time.monotonic() < until:
            time.sleep(0.1)
        subprocess.run([binaries / "createdb", "-h", folder, "-U", "fleet", "fleet"], **run)
        yield f"postgresql+psycopg://fleet@/fleet?host={folder}", server.pid
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Served:
    url: str
    token: str
    process: int
    folder: Path

    def client(self) -> FleetClient:
        return FleetClient(self.url, self.token)

    def simulate(self, *options: str) -> subprocess.Popen[str]:
        """`edgekit fleet simulate --json` in a process of its own."""
        environment = {**os.environ, "EDGEKIT_FLEET": self.url, "EDGEKIT_FLEET_TOKEN": self.token}
        command = [*EDGEKIT, "fleet", "simulate", "--json", "-q", *options]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def outcome_of(simulation: subprocess.Popen[str], limit_s: float) -> dict[str, Any]:
    """Raises RuntimeError where it failed."""
    out, _ = simulation.communicate(timeout=limit_s)
    if simulation.returncode:
        raise RuntimeError(f"the simulation ended with {simulation.returncode}")
    found: dict[str, Any] = json.loads(out)["simulation"]
    return found


@contextlib.contextmanager
def served(database: str | None = None, workers: int = 1) -> Iterator[Served]:
    """`edgekit fleet serve` in a fresh folder; a SQLite file in it without `database`."""
    with tempfile.TemporaryDirectory(prefix="edgekit-fleet-") as name:
        folder = Path(name)
        command = [*EDGEKIT, "fleet", "serve", "--port", "0", "--data", str(folder / "data"), "--json", "-q"]
        command += [] if database is None else ["--db", database]
        command += [] if workers == 1 else ["--workers", str(workers)]
        log = (folder / "log").open("w")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield _told(process, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()


def _told(process: subprocess.Popen[str], folder: Path) -> Served:
    """What it says when it is up."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            break
    if not text:
        raise RuntimeError((folder / "log").read_text())
    said = json.loads(text)
    found = Served(said["url"], said["token"], process.pid, folder)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(Exception), found.client() as client:
            client.overview()
            return found
        time.sleep(0.1)
    raise RuntimeError("the service does not answer: " + (folder / "log").read_text())


class CountingWay:
    """A way to the service on another port that counts what passes, in a thread; `close` ends it."""

    def __init__(self, target_port: int) -> None:
        import socket

        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.down_bytes = self.up_bytes = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        import socket

        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for source, sink, is_down in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pass, args=(source, sink, is_down), daemon=True).start()

    def _pass(self, source: Any, sink: Any, is_down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    if is_down:
                        self.down_bytes += len(data)
                    else:
                        self.up_bytes += len(data)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.close()

    def close(self) -> None:
        self._listener.close()
