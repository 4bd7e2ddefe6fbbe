"""A real fleet on a real server, a wire to it that can be cut, and real agents."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import update

from edgekit.fleet.agent.enrolment import enroll
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.people import DeviceView, InvitationOrder
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.devices import give
from edgekit.fleet.store.tables import Device
from edgekit.runtimes.listening import open_socket
from tests.fleet.acting import ADMIN, push

PATIENCE_S = 40.0


def until(holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S, pause_s: float = 0.05) -> None:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(pause_s)
    raise AssertionError(f"{what}: not within {patience_s:g} s")


class LiveFleet:
    """`port` None: any. `bundles`: folders, pushed."""

    def __init__(self, folder: Path, bundles: Sequence[Path]) -> None:
        self.service = FleetService(folder)
        self.digests = [push(self.service, bundle).digest for bundle in bundles]
        self.port = 0
        self.listen()

    def listen(self) -> None:
        self._listener = open_socket("127.0.0.1", self.port)
        self.port = self._listener.getsockname()[1]
        self._server = make_server(self.service, Listening(port=self.port))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        until(lambda: self._server.started, "the fleet listens")

    def hang_up(self) -> None:
        """As a server that is stopped: nobody listens there."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def enroll(self, home: Home, name: str = "pi-1", tier: str = "device", url: str | None = None) -> None:
        token = self.service.devices.invite(ADMIN, InvitationOrder()).token
        enroll(home, url or self.url, token, name, next(one for one in ("device", "edge", "cloud") if one == tier))

    def order(self, name: str, digest: str | None, kept: Sequence[str] = ()) -> None:
        device, core = self.device(name).id, self.service.core
        with core.database.write() as session:
            session.execute(update(Device).where(Device.id == device).values(kept=list(kept)))
            give(session, {device: digest}, core.database.tick(session))
        core.tell((device,))

    def device(self, name: str = "pi-1") -> DeviceView:
        return self.service.devices.get(name)

    def close(self) -> None:
        self.hang_up()
        self.service.close()


class Wire:
    """Between an agent and its fleet. `bytes_left`: how many more come down before it is cut, None for ever."""

    def __init__(self, port: int) -> None:
        self.bytes_left: int | None = None
        self.is_up = True
        self.cuts = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_up:
                near.close()
                continue
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            while self.is_up and not self._closed.is_set():
                for end in select.select([near, far], [], [], 0.1)[0]:
                    data = end.recv(4096)
                    if not data:
                        return
                    if end is far and self.bytes_left is not None:
                        self.bytes_left -= len(data)
                        if self.bytes_left < 0:
                            self.cuts += 1
                            self.bytes_left = None
                            return
                    (far if end is near else near).sendall(data)

    def close(self) -> None:
        self._closed.set()
        self._listener.close()


@contextlib.contextmanager
def agent_process(home: Home, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`edgekit agent run`, for real; killed at the end where it still runs."""
    command = [sys.executable, "-m", "edgekit", "agent", "run", "--home", str(home.path), "--windows", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {})
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def free_ports() -> int:
    """The first of two free ones."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port
    raise AssertionError("no two free ports beside each other")


def digest_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
