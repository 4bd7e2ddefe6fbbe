"""What an agent asks, as the device that it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgekit.fleet.client.connection import TIMEOUT_S, Connection
from edgekit.fleet.protocol.agents import Desired, Enrolled, Enrolment, Renewal, Sync
from edgekit.fleet.protocol.bundles import Offer

MOST_BYTES = 4 << 20  # of an answer: indexes have one MiB at most


class AgentClient:
    """What an agent asks, as the device that it is."""

    def __init__(
        self, url: str, token: str = "", ca: Path | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.connection = Connection(url, token, ca, certificate, most_bytes=MOST_BYTES)

    def enroll(self, enrolment: Enrolment) -> Enrolled:
        return self.connection.ask(Enrolled, "POST", "/enroll", enrolment)

    def renew(self, renewal: Renewal) -> Enrolled:
        return self.connection.ask(Enrolled, "POST", "/agent/renew", renewal)

    def sync(self, sync: Sync) -> Desired:
        return self.connection.ask(Desired, "POST", "/agent/sync", sync, timeout=TIMEOUT_S + sync.wait_s)

    def index(self, digest: str) -> Offer:
        return self.connection.ask(Offer, "GET", f"/bundles/{digest}/index")

    def metadata(self, name: str) -> Iterator[bytes]:
        """A file of signed metadata, as it was signed. Raises AbsentError where there is none."""
        return self.connection.stream(f"/tuf/{name}")

    def blob(self, sha256: str, start: int = 0) -> Iterator[bytes]:
        return self.connection.stream(f"/blobs/{sha256}", start)

    def close(self) -> None:
        self.connection.close()
