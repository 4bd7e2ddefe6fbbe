"""What stands around a coordinator under faults, each a process of its own: the edge, the link, and a watch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


class Edge:
    """`edgekit serve` on one port, whatever happens to the process."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, bundle: Path | None = None) -> None:
        self.stop()
        command = ["-m", "edgekit", "serve", str(bundle or self.bundle), "--tier", "edge", "--port", "0"]
        self._process = subprocess.Popen(
            [sys.executable, *command, "--grpc-port", str(self.port), "--threads", "1", "--grace", "1", "-q"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"edgekit serve ended with {self._process.returncode}")
            time.sleep(0.05)
        raise RuntimeError("edgekit serve does not listen")

    def send(self, number: int) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self.send(number)
            self._process.wait(20)
            self._process = None


class LinkProcess:
    """The link emulator in a process of its own: in this one it would compete with what is measured. Takes one command
    a line on its standard input."""

    _CODE = """
import sys
from edgekit.planning.link import Link
from edgekit.runtimes.link.emulator import LinkEmulator
with LinkEmulator("127.0.0.1:0", sys.argv[1], Link.parse(sys.argv[2])) as link:
    print(link.address, flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "set":
            link.set(Link.parse(argument))
        elif command == "cut":
            link.cut(close=argument == "close")
        elif command == "restore":
            link.restore()
        elif command == "flip":
            link.flip(argument)
"""

    def __init__(self, to: str, link: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._CODE, to, link], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> LinkProcess:
        return self

    def __exit__(self, *failure: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


class StallWatch:
    """A process that sleeps 5 ms at a time and notes by how much it was woken too late: what the machine alone adds.

    Where that is more than a deadline has to spare, late answers tell of the machine's load.
    """

    _CODE = """
import json, select, sys, time
late = []
while not select.select([sys.stdin], [], [], 0)[0]:
    due = time.monotonic() + 0.005
    time.sleep(0.005)
    late.append(1e3 * (time.monotonic() - due))
late.sort()
print(json.dumps({"p50": late[len(late) // 2], "p99": late[int(0.99 * len(late))], "max": late[-1]}))
"""

    def __enter__(self) -> StallWatch:
        self.late_ms: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *failure: object) -> None:
        told, _ = self._process.communicate("stop\n", timeout=20)
        self.late_ms = json.loads(told)
