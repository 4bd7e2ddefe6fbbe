"""What answers requests: an edgekit node over the bundles that count, or nobody."""

from __future__ import annotations

import errno
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekit.bundle.manifest import Tier
from edgekit.errors import SessionError
from edgekit.fleet.agent.disk import output_error
from edgekit.runtimes.lifeline import start_tied

logger = logging.getLogger("edgekit")

START_S, STOP_S, POLL_S = 60.0, 10.0, 0.1
WATCH_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
PORT_PAUSE_S = 10.0  # while another program holds the port
CRASHES, CRASH_LOOP_S = 5, 300.0  # 15 s at least: an earlier node may still finish what is inside, and hold the port
# How often a node is asked whether it lives; how long it may be silent, and how long before its first word.
LOOK_S, SILENT_S, LOAD_S = 10.0, 60.0, 900.0


class Runtime(Protocol):
    """What answers requests here. `on_failing`: hears, from any thread, which slot cannot be kept running, and why."""

    on_failing: Callable[[Path, str], None]
    url: str | None  # where it answers, None where nobody does

    def use(self, bundle: Path | None, kept: Sequence[Path] = ()) -> None:
        """Answers with `bundle` from now on (None: with nothing), and for who asks for one that is `kept` with that.
        Raises EdgekitError, and then goes on as before where it can."""

    def close(self) -> None: ...


def nobody_hears(slot: Path, reason: str) -> None:
    """Until an updater listens."""
    logger.error("%s: %s", slot, reason)


class NoRuntime:
    """Applications open `current` themselves, and look where it leads."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.on_failing: Callable[[Path, str], None] = nobody_hears

    def use(self, bundle: Path | None, kept: Sequence[Path] = ()) -> None:
        pass

    def close(self) -> None:
        pass


class NodeRuntime:
    """`edgekit serve`, over a folder of links to the bundles, exchanged by SIGHUP, which loses no request; started
    again with growing pauses when it ends. `served`: the folder, this object's alone."""

    def __init__(self, served: Path, tier: Tier, port: int, grpc_port: int, options: tuple[str, ...] = ()) -> None:
        self.on_failing: Callable[[Path, str], None] = nobody_hears
        self.url: str | None = f"http://127.0.0.1:{port}"
        self._served, self._ports = served, (port, grpc_port)
        self._command = [sys.executable, "-m", "edgekit", "serve", str(served), "--tier", tier]
        self._command += ["--port", str(port), "--grpc-port", str(grpc_port), "-q", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._crashes: list[float] = []
        self._wanted: tuple[Path, ...] = ()
        self._watcher: threading.Thread | None = None
        self._looked_at = self._started_at = 0.0
        self._live_at: float | None = None

    def use(self, bundle: Path | None, kept: Sequence[Path] = ()) -> None:
        """Raises SessionError where the node does not come up with it."""
        with self._lock:
            before, self._wanted = self._wanted, () if bundle is None else (*kept, bundle)
            if bundle is None:
                self._end()
                return
            self._crashes.clear()
            self._lay_out()
            if self._is_up() and self._wanted == before:
                return
            self._start_or_reload()
            self._watch()
            self._wait_for({path.name for path in self._wanted})

    def _lay_out(self) -> None:
        """What counts comes last: it answers who asks for no bundle in particular. Nothing is written where nothing
        changes, so that a node starts on a read-only file system too."""
        wanted = {f"{place:02d}": path.absolute() for place, path in enumerate(self._wanted)}
        try:
            there = {link.name: link.readlink() for link in self._served.iterdir()} if self._served.is_dir() else None
            if there == wanted:
                return
            self._served.mkdir(exist_ok=True)
            for name in there or ():
                (self._served / name).unlink()
            for name, path in wanted.items():
                (self._served / name).symlink_to(path)
        except OSError as error:
            raise output_error(self._served, error) from error

    def _start_or_reload(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)
        else:
            self._process = start_tied(self._command, stdout=subprocess.DEVNULL)
            self._started_at, self._live_at = time.monotonic(), None

    def _wait_for(self, digests: set[str]) -> None:
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                ended = f"the node ended with exit code {self._process.returncode}"
                raise SessionError(self._port_trouble() or ended, hint="its own words are above")
            if self.served() == digests:
                return
            time.sleep(POLL_S)
        raise SessionError(f"the node does not serve {', '.join(sorted(digests))[:200]} after {START_S:g} s")

    def served(self) -> set[str]:
        """Digests of the bundles that are answered for."""
        found = set()
        try:
            for model in self._ask("/v2/repository/index", b"{}"):
                config = self._ask(f"/v2/models/{model['name']}/versions/{model['version']}/config")
                found.add(config["parameters"]["edgekit_bundle"]["string_value"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.debug("the node does not answer yet: %s", error)
        return found

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", data=body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    # Watching

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._keep_up, name="edgekit-node-watch", daemon=True)
            self._watcher.start()

    def _keep_up(self) -> None:
        while not self._closed.wait(WATCH_S):
            self._look()
            with self._lock:
                if not self._wanted or self._is_up():
                    continue
                slot, count = self._wanted[-1], self._note_crash()
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (count - 1))
            if trouble := self._port_trouble():  # of which no bundle is the cause
                logger.warning("%s: stop it, or give another --serve", trouble)
                self._crashes.clear()
                pause_s = PORT_PAUSE_S
            elif count >= CRASHES:
                self.on_failing(slot, f"the node ended {count} times within {CRASH_LOOP_S:g} s")
            if self._closed.wait(pause_s):
                return
            with self._lock:
                if self._wanted and not self._closed.is_set() and not self._is_up():
                    self._start_or_reload()

    def _look(self) -> None:
        """Ends a node that runs and does not answer; one that has not answered yet may still be loading."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S or not self._is_up():
            return
        process, is_live = self._process, self._is_live()
        self._looked_at = time.monotonic()
        with self._lock:
            if process is not self._process or not self._is_up():
                return
            if is_live:
                self._live_at = self._looked_at
            patience_s = SILENT_S if self._live_at is not None else LOAD_S
            if now - (self._live_at or self._started_at) > patience_s:
                self._kill()

    def _note_crash(self) -> int:
        """How many there were lately."""
        now = time.monotonic()
        self._crashes = [at for at in self._crashes if now - at < CRASH_LOOP_S] + [now]
        code = None if self._process is None else self._process.returncode
        logger.warning("the node ended with exit code %s; it is started again", code)
        return len(self._crashes)

    def _port_trouble(self) -> str:
        """Of ports that somebody else holds; "" where both are free."""
        for port in self._ports:
            with socket.socket() as trying:
                trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trying.bind(("127.0.0.1", port))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        return f"another program listens on port {port}"
        return ""

    def _is_live(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/live", timeout=LOOK_S / 2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            logger.warning("the node runs and does not answer: it is ended")
            self._process.kill()
            self._process.wait()

    def _is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._wanted = ()
            self._end()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(STOP_S)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
