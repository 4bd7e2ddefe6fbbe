"""The process that answers requests: an edgekit node over the bundle that `current` leads to, or nobody."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from edgekit.bundle.layout import INDEX, MANIFEST, parse_index
from edgekit.bundle.manifest import Tier
from edgekit.errors import SessionError

logger = logging.getLogger("edgekit")

START_S, STOP_S, POLL_S = 60.0, 10.0, 0.1


class NoRuntime:
    """Applications open `current` themselves, and look where it leads."""

    def use(self, bundle: Path | None) -> None:
        pass

    def close(self) -> None:
        pass


class NodeRuntime:
    """`edgekit serve CURRENT`, exchanged by SIGHUP, which loses no request. `current`: the link to the slot."""

    def __init__(self, current: Path, tier: Tier, port: int, grpc_port: int, options: tuple[str, ...] = ()) -> None:
        self._current, self._port = current, port
        self._command = [sys.executable, "-m", "edgekit", "serve", str(current), "--tier", tier]
        self._command += ["--port", str(port), "--grpc-port", str(grpc_port), "-q", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, bundle: Path | None) -> None:
        """Raises SessionError where the node does not come up with it."""
        if bundle is None:
            self.close()
            return
        digest = parse_index((bundle / INDEX).read_bytes(), str(bundle)).files[MANIFEST].sha256
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)
        else:
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        self._wait_for(digest)

    def _wait_for(self, digest: str) -> None:
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise SessionError(f"the node ended with exit code {self._process.returncode}")
            if digest in self.served():
                return
            time.sleep(POLL_S)
        raise SessionError(f"the node does not serve {digest[:16]} after {START_S:g} s")

    def served(self) -> set[str]:
        """Digests of the bundles whose newest versions are answered for."""
        found = set()
        try:
            for model in self._ask("/v2/repository/index", b"{}"):
                config = self._ask(f"/v2/models/{model['name']}/config")
                found.add(config["parameters"]["edgekit_bundle"]["string_value"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("the node does not answer yet: %s", error)
        return found

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data=body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
