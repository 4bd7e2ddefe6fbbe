"""What a daemon needs once in a while, done by a process of its own: keys and signed metadata take libraries of 20 MB,
which a device would otherwise hold for ever.

python -m edgekit.fleet.agent.errand HOME renew           the child: {"renewed": true}
python -m edgekit.fleet.agent.errand HOME index DIGEST    {"index": "...", "signature": "..."}, once it is vouched for
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, RemoteError
from edgekit.fleet.agent.contact import DeviceClient
from edgekit.fleet.agent.home import Home
from edgekit.fleet.client import problem_of
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.protocol.wire import Problem
from edgekit.runtimes.lifeline import end_with_parent, start_tied

TIMEOUT_S = 300.0
FIRST_LOOK_S = 30.0  # at the certificate


class FrugalClient(DeviceClient):
    """A device's client that keeps what it asks in memory small. Raises as the other one does, RemoteError where an
    errand does not end."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self._look_at = self._now() + FIRST_LOOK_S  # what runs, and orders, come first at a start

    def renew_if_due(self) -> bool:
        return bool(self._send("renew").get("renewed"))

    def index(self, digest: str) -> Offer:
        return Offer.model_validate(self._send("index", digest))

    def _send(self, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "edgekit.fleet.agent.errand", str(self._home.path), *words]
        child = start_tied(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        watch = threading.Timer(TIMEOUT_S, child.kill)
        watch.start()
        try:
            said = child.stdout.read()
            found = json.loads(said.splitlines()[-1])
        except (ValueError, LookupError) as error:
            raise RemoteError(f"{words[0]} of this device did not come to an end", hint="it is tried again") from error
        finally:
            watch.cancel()
            child.kill()
            child.wait()
            child.stdout.close()
            if child.stdin is not None:
                child.stdin.close()
        if "error" in found:
            raise problem_of(0, json.dumps(found).encode())
        return dict(found)


def run(home: Home, words: list[str]) -> dict[str, Any]:
    client = DeviceClient(home)
    try:
        if words[0] == "renew":
            return {"renewed": client.renew_if_due()}
        return client.index(words[1]).model_dump()
    except EdgekitError as error:
        return Problem(error=error.message, hint=error.hint, kind=type(error).__name__).model_dump()
    finally:
        client.close()


def main() -> None:
    end_with_parent()
    sys.stdout.write("\n" + json.dumps(run(Home(Path(sys.argv[1])), sys.argv[2:])) + "\n")


if __name__ == "__main__":
    main()
