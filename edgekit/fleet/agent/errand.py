"""What a daemon needs once in a while, done by a process of its own: keys and signed metadata take libraries of 20 MB,
which a device would otherwise hold for ever.

python -m edgekit.fleet.agent.errand HOME renew           the child: {"renewed": true}
python -m edgekit.fleet.agent.errand HOME index DIGEST    {"index": "...", "signature": "..."}, once it is vouched for
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgekit import errors
from edgekit.errors import EdgekitError, RemoteError
from edgekit.fleet.agent.contact import DeviceClient
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.bundles import Offer
from edgekit.runtimes.lifeline import end_with_parent, start_tied

TIMEOUT_S = 300.0
# Those that an errand may end with, each made of a message and a hint.
KINDS = {
    kind.__name__: kind
    for kind in (
        errors.AbsentError,
        errors.AuthenticationError,
        errors.BundleError,
        errors.ConflictError,
        errors.ForbiddenError,
        errors.MismatchError,
        errors.OutputError,
        errors.OverloadedError,
        errors.SignatureError,
        errors.StoreError,
        errors.UnreachableError,
        errors.UsageError,
    )
}


class FrugalClient(DeviceClient):
    """A device's client that keeps what it asks in memory small. Raises as the other one does, RemoteError where an
    errand does not end."""

    def renew_if_due(self) -> bool:
        return bool(self._send("renew").get("renewed"))

    def index(self, digest: str) -> Offer:
        return Offer.model_validate(self._send("index", digest))

    def _send(self, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "edgekit.fleet.agent.errand", str(self._home.path), *words]
        child = start_tied(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            said, _ = child.communicate(timeout=TIMEOUT_S)
            found = json.loads(said.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
            raise RemoteError(f"{words[0]} of this device did not come to an end", hint="it is tried again") from error
        finally:
            child.kill()
            child.wait()
        if "error" in found:
            kind = KINDS.get(found.get("kind", ""), RemoteError)
            raise kind(found["error"], hint=found.get("hint", ""))
        return dict(found)


def run(home: Home, words: list[str]) -> dict[str, Any]:
    client = DeviceClient(home)
    try:
        if words[0] == "renew":
            return {"renewed": client.renew_if_due()}
        return client.index(words[1]).model_dump()
    except EdgekitError as error:
        return {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
    finally:
        client.close()


def main() -> None:
    end_with_parent()
    sys.stdout.write("\n" + json.dumps(run(Home(Path(sys.argv[1])), sys.argv[2:])) + "\n")


if __name__ == "__main__":
    main()
